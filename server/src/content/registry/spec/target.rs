//! What an address below `/v2/` stands for. Names of repositories have slashes, so addresses are read from their end.

use nkd_api::Sha256Digest;
use uuid::Uuid;

use super::name::{NameError, Reference, Repository, digest};

/// What an address stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `_catalog`
    Catalog,
    /// `<name>/tags/list`
    Tags(Repository),
    /// `<name>/manifests/<tag or digest>`
    Manifest(Repository, Reference),
    /// `<name>/blobs/<digest>`
    Blob(Repository, Sha256Digest),
    /// `<name>/referrers/<digest>`
    Referrers(Repository, Sha256Digest),
    /// `<name>/blobs/uploads/`
    Uploads(Repository),
    /// `<name>/blobs/uploads/<id>`
    Upload(Repository, Uuid),
}

/// The address stands for nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// No form of address.
    #[error("there is nothing at this address of the registry")]
    Nothing,
    /// A wrong name in it.
    #[error(transparent)]
    Name(#[from] NameError),
    /// An upload that nobody began.
    #[error("there is no such upload: begin again")]
    Upload,
}

impl Target {
    /// Reads what follows `/v2/`.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn parse(path: &str) -> Result<Self, TargetError> {
        if path == "_catalog" {
            return Ok(Self::Catalog);
        }
        if let Some(name) = path.strip_suffix("/blobs/uploads/").or_else(|| path.strip_suffix("/blobs/uploads")) {
            return Ok(Self::Uploads(name.parse()?));
        }
        let (rest, last) = path.rsplit_once('/').ok_or(TargetError::Nothing)?;
        if let Some(name) = rest.strip_suffix("/blobs/uploads") {
            let name = name.parse()?;
            return last.parse().map(|id| Self::Upload(name, id)).map_err(|_| TargetError::Upload);
        }
        let (name, kind) = rest.rsplit_once('/').ok_or(TargetError::Nothing)?;
        let name = || name.parse::<Repository>();
        match (kind, last) {
            ("tags", "list") => Ok(Self::Tags(name()?)),
            ("manifests", reference) => Ok(Self::Manifest(name()?, reference.parse()?)),
            ("blobs", text) => Ok(Self::Blob(name()?, digest(text)?)),
            ("referrers", text) => Ok(Self::Referrers(name()?, digest(text)?)),
            _ => Err(TargetError::Nothing),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::content::registry::spec::digest_text;

    #[test]
    fn addresses_that_stand_for_nothing() {
        for path in ["", "a", "a/b", "tags/list", "a/tags", "a/tags/lists", "blobs/uploads", "a/b/c/d", "_catalog/"] {
            assert_eq!(Target::parse(path), Err(TargetError::Nothing), "{path}");
        }
        assert_eq!(Target::parse("a/blobs/uploads/1"), Err(TargetError::Upload));
        for path in ["A/tags/list", "/blobs/uploads/", "a//manifests/x", "../x/manifests/y", "a/../../etc/tags/list"] {
            assert!(matches!(Target::parse(path), Err(TargetError::Name(NameError::Repository(_)))), "{path}");
        }
        assert!(matches!(Target::parse("a/blobs/sha256:0"), Err(TargetError::Name(NameError::Digest(_)))));
        assert!(matches!(Target::parse("a/manifests/.x"), Err(TargetError::Name(NameError::Tag(_)))));
    }

    proptest! {
        /// Repositories may be called as parts of addresses are.
        #[test]
        fn every_address_is_found_again(
            name in "(blobs|manifests|tags|uploads|referrers|list|a)(/(blobs|manifests|tags|uploads|referrers|list|b)){0,4}",
            tag in "(list|uploads|blobs|[a-zA-Z0-9_.]{1,5})",
            bytes: [u8; 32],
            id: u128,
        ) {
            let (digest, id) = (Sha256Digest(bytes), Uuid::from_u128(id));
            let repository: Repository = name.parse().unwrap();
            let text = digest_text(&digest);
            let of = |rest: &str| Target::parse(&format!("{name}/{rest}"));
            prop_assert_eq!(of("tags/list"), Ok(Target::Tags(repository.clone())));
            prop_assert_eq!(of(&format!("blobs/{text}")), Ok(Target::Blob(repository.clone(), digest)));
            prop_assert_eq!(of(&format!("referrers/{text}")), Ok(Target::Referrers(repository.clone(), digest)));
            prop_assert_eq!(of("blobs/uploads/"), Ok(Target::Uploads(repository.clone())));
            prop_assert_eq!(of(&format!("blobs/uploads/{id}")), Ok(Target::Upload(repository.clone(), id)));
            let by_digest = Reference::Digest(digest);
            prop_assert_eq!(of(&format!("manifests/{text}")), Ok(Target::Manifest(repository.clone(), by_digest)));
            if let Ok(reference) = tag.parse::<Reference>() {
                prop_assert_eq!(of(&format!("manifests/{tag}")), Ok(Target::Manifest(repository, reference)));
            }
        }

        #[test]
        fn no_text_breaks_it(path in "\\PC{0,60}") {
            let _ = Target::parse(&path);
        }
    }
}
