//! Images that are named by their tags: what a name means, when its registry is asked again, and what is said meanwhile (pure).
//!
//! A tag is looked up once for an update, and what it stood for is written into the update's status before any node is told
//! anything. From then on the update names the digest, so that all nodes get the same image.

use std::fmt;
use std::net::Ipv6Addr;

use nkd_api::update::FoundImage;
use time::{Duration, OffsetDateTime};

use crate::step::Why;

/// The registry of names that have none, as docker and podman read them.
pub const HUB: &str = "docker.io";
/// Where its images of one word are.
const HUB_LIBRARY: &str = "library";
/// The tag of a name that has none.
const LATEST: &str = "latest";
const LONGEST_REPOSITORY: usize = 255;
const LONGEST_TAG: usize = 128;
/// Between two questions, the first time and at most.
const PAUSES: [Duration; 2] = [Duration::seconds(5), Duration::seconds(60)];

/// What the name of an image says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// The same image wherever and whenever it is fetched.
    Digest(String),
    /// Whatever its registry says.
    Tag(Tagged),
}

/// A name with a tag, in full. Written: `registry.example/os:24.03`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tagged {
    /// Host, perhaps with a port.
    pub registry: String,
    /// The name of the repository there.
    pub repository: String,
    /// The tag.
    pub tag: String,
}

/// How far the look-up of an update's image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looked {
    /// The image, in full.
    pub asked: String,
    /// How far it is.
    pub state: LookState,
    /// How often it has failed in a row.
    pub failed: u32,
    /// How it has failed last.
    pub said: String,
}

/// How far a look-up is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookState {
    /// The registry is asked.
    UnderWay,
    /// It has said this digest.
    Found(String),
    /// It has failed, so long ago.
    Failed(Duration),
}

impl fmt::Display for Tagged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.registry, self.repository, self.tag)
    }
}

impl Tagged {
    /// The same image by its digest, as nodes take it: what fetches images there takes no name with both.
    #[must_use]
    pub fn at(&self, digest: &str) -> String {
        format!("{}/{}@{digest}", self.registry, self.repository)
    }
}

/// Reads the name of an image. A name with both tag and digest means the digest. A name by its digest stays as it was written,
/// for nodes may have been told it so.
///
/// # Errors
/// What is wrong with it.
pub fn read(text: &str) -> Result<Named, String> {
    let (name, digest) = match text.rsplit_once('@') {
        Some((name, digest)) if is_digest(digest) => (name, Some(digest)),
        Some(_) => return Err("what follows the @ is no digest: write sha256: and 64 hex digits".into()),
        None => (text, None),
    };
    let (bare, tag) = match name.rsplit_once(':') {
        Some((bare, tag)) if !tag.contains(['/', ']']) => (bare, Some(tag)),
        _ => (name, None),
    };
    if let Some(digest) = digest {
        return match bare.rsplit('/').next().is_none_or(str::is_empty) || bare.contains('@') {
            true => Err("it has no name before the digest".into()),
            false => Ok(Named::Digest(format!("{bare}@{digest}"))),
        };
    }
    let (registry, repository) = split(bare);
    if !is_host(registry) {
        return Err(format!("`{registry}` is no host of a registry: write it like registry.example:5000"));
    }
    if repository.len() > LONGEST_REPOSITORY || !repository.split('/').all(is_part) {
        let plain = "lower-case letters, digits, and one of . _ - between them";
        return Err(format!("`{repository}` is no name of an image: its parts are {plain}"));
    }
    let tag = tag.unwrap_or(LATEST);
    if !is_tag(tag) {
        return Err(format!("`{tag}` is no tag: letters, digits, . _ and -, at most {LONGEST_TAG} of them"));
    }
    let repository = match registry == HUB && !repository.contains('/') {
        true => format!("{HUB_LIBRARY}/{repository}"),
        false => repository.to_owned(),
    };
    Ok(Named::Tag(Tagged { registry: registry.to_owned(), repository, tag: tag.to_owned() }))
}

/// Registry and repository. The first part is a registry when it looks like a host, as with docker and podman.
fn split(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some(("index.docker.io", rest)) => (HUB, rest),
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => (HUB, name),
    }
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let digits = |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|n| n > 0);
    let word = |label: &str| {
        let inner = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        inner && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    let good = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => host.split('.').all(word),
    };
    good && port.is_none_or(digits)
}

fn is_part(text: &str) -> bool {
    let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (bytes, ends) = (text.as_bytes(), [text.as_bytes().first(), text.as_bytes().last()]);
    // `__` is one separator, and so are any number of dashes.
    let single = !["..", "._", "_.", ".-", "-.", "_-", "-_", "___"].iter().any(|two| text.contains(two));
    ends.into_iter().all(|end| end.is_some_and(plain)) && bytes.iter().all(|b| plain(b) || b"._-".contains(b)) && single
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let first = text.bytes().next().is_some_and(word);
    first && text.len() <= LONGEST_TAG && text.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// A digest that agents take: they know no other kind.
#[must_use]
pub fn is_digest(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:");
    hex.is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// How long after so many failures it is asked again.
#[must_use]
pub fn pause(failed: u32) -> Duration {
    let [first, most] = PAUSES;
    let times = 2_i32.saturating_pow(failed.saturating_sub(1).min(16));
    first.saturating_mul(times).min(most)
}

/// True when the registry is to be asked now.
#[must_use]
pub fn is_due(asked: &str, looked: Option<&Looked>) -> bool {
    let Some(looked) = looked.filter(|looked| looked.asked == asked) else { return true };
    match &looked.state {
        LookState::UnderWay | LookState::Found(_) => false,
        LookState::Failed(since) => *since >= pause(looked.failed),
    }
}

/// What has been found, to be written down.
#[must_use]
pub fn found(asked: &str, looked: Option<&Looked>, now: OffsetDateTime) -> Option<FoundImage> {
    let looked = looked.filter(|looked| looked.asked == asked)?;
    match &looked.state {
        LookState::Found(digest) => Some(FoundImage { asked: asked.to_owned(), digest: digest.clone(), at: now }),
        _ => None,
    }
}

/// The word for an image that the registry is asked for.
pub const LOOKS_UP: &str = "LooksUpImage";
/// The word for one that could not be looked up so far.
pub const UNKNOWN: &str = "ImageUnknown";

/// Why nothing begins before it is known. While it is asked again, what was said last stands.
#[must_use]
pub fn why(asked: &str, looked: Option<&Looked>) -> Why {
    let looks_up = |more: &str| Why { code: LOOKS_UP, text: format!("looks up {asked}{more}") };
    match looked.filter(|looked| looked.asked == asked) {
        // An API server drops what its definition of the resource does not have.
        Some(Looked { state: LookState::Found(_), .. }) => looks_up(
            ": it is found, and written here; where nothing follows, the resource definitions are older than the operator: \
             apply its crds.yaml",
        ),
        Some(Looked { failed: failed @ 1.., said, .. }) => {
            let seconds = pause(*failed).whole_seconds();
            Why { code: UNKNOWN, text: format!("looks up {asked}, again {seconds} s after each failure: {said}") }
        }
        _ => looks_up(""),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tagged(text: &str) -> String {
        match read(text) {
            Ok(Named::Tag(tagged)) => tagged.to_string(),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_name_means_what_docker_and_podman_take_it_for() {
        for (text, full) in [
            ("registry.example/nestos:24.03", "registry.example/nestos:24.03"),
            ("registry.example:5000/a/b__c/d-e--f.g:V1_x.y-z", "registry.example:5000/a/b__c/d-e--f.g:V1_x.y-z"),
            ("10.0.0.1:8443/os:2", "10.0.0.1:8443/os:2"),
            ("[2001:db8::1]:8443/os:2", "[2001:db8::1]:8443/os:2"),
            ("[2001:db8::1]/os", "[2001:db8::1]/os:latest"),
            ("localhost/os:2", "localhost/os:2"),
            ("registry.example:5000/os", "registry.example:5000/os:latest"),
            // No registry: the first part is no host.
            ("nestos:24.03", "docker.io/library/nestos:24.03"),
            ("nestos", "docker.io/library/nestos:latest"),
            ("test.example:5000", "docker.io/library/test.example:5000"),
            ("openeuler/nestos:1", "docker.io/openeuler/nestos:1"),
            ("index.docker.io/nestos:1", "docker.io/library/nestos:1"),
        ] {
            assert_eq!(tagged(text), full);
            assert_eq!(tagged(full), full, "in full it is the same");
        }
    }

    #[test]
    fn what_names_no_image_says_what_is_wrong() {
        for (text, said) in [
            ("", "no name of an image"),
            (":1", "no name of an image"),
            ("registry.example/", "no name of an image"),
            ("registry.example/NestOS:1", "lower-case"),
            ("registry.example/a//b:1", "no name of an image"),
            ("registry.example/a b:1", "no name of an image"),
            ("registry.example/../etc:1", "no name of an image"),
            ("registry.example/os:", "no tag"),
            ("registry.example/os:-1", "no tag"),
            ("registry.example/os:a?b", "no tag"),
            ("docker://registry.example/os:1", "no host"),
            ("https://registry.example/os:1", "no host"),
            ("user:password@registry.example/os:1", "no digest"),
            ("registry.example:0/os:1", "no host"),
            ("registry.example:+1/os:1", "no host"),
            ("registry.example:99999/os:1", "no host"),
            ("[2001:db8::g]/os:1", "no host"),
            ("-registry.example/os:1", "no host"),
            ("registry.example/os@sha256:ab", "64 hex digits"),
            ("registry.example/os@", "64 hex digits"),
        ] {
            let problem = read(text).unwrap_err();
            assert!(problem.contains(said), "{text}: {problem}");
        }
        let long = format!("registry.example/{}:1", "a".repeat(256));
        assert!(read(&long).is_err() && read(&format!("registry.example/os:{}", "a".repeat(129))).is_err());
    }

    #[test]
    fn a_digest_goes_before_a_tag_and_nothing_else_of_the_name_changes() {
        let digest = format!("sha256:{}", "0f".repeat(32));
        for name in ["registry.example:5000/nestos", "nestos", "[::1]:5000/os", "registry.example/NestOS"] {
            let bare = Named::Digest(format!("{name}@{digest}"));
            assert_eq!(read(&format!("{name}@{digest}")).as_ref(), Ok(&bare));
            assert_eq!(read(&format!("{name}:24.03@{digest}")).as_ref(), Ok(&bare));
        }
        for bad in [format!("@{digest}"), format!("registry.example/@{digest}"), format!("a@b@{digest}")] {
            assert!(read(&bad).is_err(), "{bad}");
        }
        for bad in ["g".repeat(64), "0F".repeat(32), "a".repeat(63), "a".repeat(65)] {
            assert!(!is_digest(&format!("sha256:{bad}")), "{bad}");
        }
    }

    #[test]
    fn it_is_asked_once_and_after_a_failure_ever_more_seldom() {
        let pauses: Vec<i64> = (1..=7).map(|failed| pause(failed).whole_seconds()).collect();
        assert_eq!(pauses, [5, 10, 20, 40, 60, 60, 60]);
        assert_eq!(pause(u32::MAX), pause(5));
        let asked = "registry.example/os:1";
        let looked = |state, failed| Looked { asked: asked.into(), state, failed, said: "it is closed".into() };
        assert!(is_due(asked, None));
        let under_way = looked(LookState::UnderWay, 0);
        assert!(!is_due(asked, Some(&under_way)) && is_due("registry.example/os:2", Some(&under_way)));
        let failed = |seconds| looked(LookState::Failed(Duration::seconds(seconds)), 2);
        assert!(!is_due(asked, Some(&failed(9))) && is_due(asked, Some(&failed(10))));
        let found_it = looked(LookState::Found("sha256:1".into()), 2);
        assert!(!is_due(asked, Some(&found_it)));
        let now = OffsetDateTime::UNIX_EPOCH;
        assert_eq!(found(asked, Some(&found_it), now).unwrap().digest, "sha256:1");
        assert_eq!(found("registry.example/os:2", Some(&found_it), now), None, "of another image");
        assert_eq!(found(asked, Some(&under_way), now), None);

        assert_eq!(why(asked, None), Why { code: LOOKS_UP, text: format!("looks up {asked}") });
        assert_eq!(why(asked, Some(&under_way)), why(asked, None));
        let written = why(asked, Some(&found_it));
        assert!(written.code == LOOKS_UP && written.text.contains("crds.yaml"), "{written:?}");
        let said = why(asked, Some(&failed(1)));
        let text = format!("looks up {asked}, again 10 s after each failure: it is closed");
        assert_eq!(said, Why { code: UNKNOWN, text });
        // It does not change to and fro.
        assert_eq!(why(asked, Some(&looked(LookState::UnderWay, 2))), said);
        assert_eq!(why("registry.example/os:2", Some(&failed(1))).code, LOOKS_UP, "of another image");
    }

    proptest! {
        /// Whatever is read makes an address without surprises, and is read as the same again.
        #[test]
        fn what_is_read_is_plain(text in "[a-zA-Z0-9./:@_\\[\\] ?#%-]{0,40}") {
            match read(&text) {
                Ok(Named::Tag(name)) => {
                    let full = name.to_string();
                    prop_assert_eq!(read(&full), Ok(Named::Tag(name.clone())));
                    let path = format!("/v2/{}/manifests/{}", name.repository, name.tag);
                    // Hosts like `1.2.3.4.5` are none for a URL.
                    if let Ok(url) = url::Url::parse(&format!("https://{}{path}", name.registry)) {
                        prop_assert_eq!(url.path(), path);
                        prop_assert!(url.query().is_none() && url.fragment().is_none() && url.username().is_empty());
                    }
                    let by_digest = name.at(&format!("sha256:{}", "a".repeat(64)));
                    prop_assert_eq!(read(&by_digest), Ok(Named::Digest(by_digest)));
                }
                Ok(Named::Digest(name)) => prop_assert_eq!(read(&name), Ok(Named::Digest(name))),
                Err(said) => prop_assert!(!said.is_empty()),
            }
        }
    }
}
