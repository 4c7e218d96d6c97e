//! Who asks a registry: what docker's `config.json` has for it, and what a registry wants to hear (pure).

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_auth::parser::ChallengeParser;
use serde::Deserialize;

use crate::image::{HUB, Tagged};

/// Names that docker's own registry has had.
const HUB_HOSTS: [&str; 3] = [HUB, "index.docker.io", "registry-1.docker.io"];

/// The file cannot be used. What it holds is never said.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// It is something else.
    #[error("it is no config.json of docker: line {line}, column {column} does not read")]
    Form {
        /// Where.
        line: usize,
        /// Where in it.
        column: usize,
    },
    /// There is no user in an entry.
    #[error("its entry for `{0}` names no user: give `auth`, base64 of USER:PASSWORD")]
    NoUser(String),
    /// A token that first has to be exchanged.
    #[error("its entry for `{0}` has an identity token, which is not known here: give a user and a password")]
    IdentityToken(String),
}

/// Who asks.
#[derive(Clone, PartialEq, Eq)]
pub enum User {
    /// A user with a password.
    Password {
        /// The user.
        name: String,
        /// The password.
        password: String,
    },
    /// Whoever has this token.
    Token(String),
}

/// No secret gets into a log.
impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "User::Password",
            Self::Token(_) => "User::Token",
        })
    }
}

/// What a registry wants before it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// A user and a password.
    Basic,
    /// A token from another place.
    Bearer {
        /// Where.
        realm: String,
        /// For whom.
        service: Option<String>,
        /// To do what.
        scope: Option<String>,
    },
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// The user that a `config.json` has for an image; nothing: none. Of several entries the one that says most of its name.
///
/// # Errors
/// The file, or that entry, cannot be used.
pub fn user(config: &[u8], image: &Tagged) -> Result<Option<User>, CredentialsError> {
    let file: File = serde_json::from_slice(config)
        .map_err(|error| CredentialsError::Form { line: error.line(), column: error.column() })?;
    let fitting = file.auths.iter().filter_map(|(key, entry)| Some((is_for(key, image)?, key, entry)));
    let best = fitting.max_by_key(|(length, ..)| *length);
    best.map(|(_, key, entry)| entry.user(key)).transpose()
}

/// How much of an image's name an entry says, if it is one for that image.
fn is_for(key: &str, image: &Tagged) -> Option<usize> {
    let plain = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = plain.split_once('/').unwrap_or((plain, ""));
    let path = path.trim_end_matches('/');
    // Addresses of an API, as docker itself writes them.
    let path = if matches!(path, "v1" | "v2") { "" } else { path };
    let host = if HUB_HOSTS.contains(&host) { HUB } else { host };
    let below = image
        .repository
        .strip_prefix(path)
        .is_some_and(|rest| path.is_empty() || rest.is_empty() || rest.starts_with('/'));
    (host == image.registry && below).then_some(path.len())
}

impl Entry {
    fn user(&self, key: &str) -> Result<User, CredentialsError> {
        let none = || CredentialsError::NoUser(key.to_owned());
        let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = filled(&self.registrytoken) {
            return Ok(User::Token(token));
        }
        if filled(&self.identitytoken).is_some() {
            return Err(CredentialsError::IdentityToken(key.to_owned()));
        }
        if let (Some(name), Some(password)) = (filled(&self.username), filled(&self.password)) {
            return Ok(User::Password { name, password });
        }
        let bytes = STANDARD.decode(filled(&self.auth).ok_or_else(none)?.trim()).map_err(|_| none())?;
        let text = String::from_utf8(bytes).map_err(|_| none())?;
        let (name, password) = text.split_once(':').ok_or_else(none)?;
        // docker has written zeros after it.
        Ok(User::Password { name: name.to_owned(), password: password.trim_end_matches('\0').to_owned() })
    }
}

/// What a registry wants, by its `WWW-Authenticate` headers. A token goes before a password.
pub fn challenge<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<Challenge> {
    let mut basic = None;
    for one in
        headers.into_iter().flat_map(|header| ChallengeParser::new(header).map_while(Result::ok).collect::<Vec<_>>())
    {
        let param = |name: &str| {
            let found = one.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_unescaped())
        };
        if one.scheme.eq_ignore_ascii_case("Bearer")
            && let Some(realm) = param("realm")
        {
            return Some(Challenge::Bearer { realm, service: param("service"), scope: param("scope") });
        }
        if one.scheme.eq_ignore_ascii_case("Basic") {
            basic = Some(Challenge::Basic);
        }
    }
    basic
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn image(registry: &str, repository: &str) -> Tagged {
        Tagged { registry: registry.into(), repository: repository.into(), tag: "1".into() }
    }

    fn name(auths: Value, registry: &str, repository: &str) -> Option<String> {
        let config = json!({"auths": auths}).to_string();
        match user(config.as_bytes(), &image(registry, repository)).unwrap()? {
            User::Password { name, .. } => Some(name),
            User::Token(token) => Some(token),
        }
    }

    fn of(name: &str) -> Value {
        json!({"auth": STANDARD.encode(format!("{name}:p:w"))})
    }

    #[test]
    fn the_entry_that_says_most_of_the_name_is_taken() {
        let auths = json!({
            "registry.example": of("all"), "registry.example/team": of("team"), "registry.example/team/os": of("os"),
            "registry.example:5000": of("port"), "https://index.docker.io/v1/": of("hub"), "https://quay.example/v2/": of("quay"),
        });
        for (registry, repository, who) in [
            ("registry.example", "os", Some("all")),
            ("registry.example", "team/kernel", Some("team")),
            ("registry.example", "team/os", Some("os")),
            ("registry.example", "teams/os", Some("all")),
            ("registry.example:5000", "team/os", Some("port")),
            ("docker.io", "library/os", Some("hub")),
            ("quay.example", "os", Some("quay")),
            ("other.example", "os", None),
            ("registry.example.evil", "os", None),
        ] {
            assert_eq!(name(auths.clone(), registry, repository).as_deref(), who, "{registry}/{repository}");
        }
        assert_eq!(name(json!({}), "registry.example", "os"), None);
        let empty = user(b"{}", &image("registry.example", "os"));
        assert_eq!(empty, Ok(None));
    }

    #[test]
    fn a_user_is_read_in_every_form_and_never_shown() {
        let read = |entry: Value| {
            let config = json!({"auths": {"r.example": entry}}).to_string();
            user(config.as_bytes(), &image("r.example", "os"))
        };
        let expected = User::Password { name: "u".into(), password: "p:w".into() };
        for entry in [of("u"), json!({"username": "u", "password": "p:w"}), json!({"auth": "dTpwOncAAA=="})] {
            assert_eq!(read(entry).unwrap().unwrap(), expected);
        }
        assert_eq!(read(json!({"registrytoken": "secret"})).unwrap(), Some(User::Token("secret".into())));
        assert_eq!(format!("{expected:?} {:?}", User::Token("secret".into())), "User::Password User::Token");
        for (entry, said) in [
            (json!({}), "names no user"),
            (json!({"auth": "c2VjcmV0"}), "names no user"),
            (json!({"auth": "secret!"}), "names no user"),
            (json!({"identitytoken": "secret"}), "identity token"),
            (json!("secret"), "line 1"),
            (json!({"auth": {"secret": 1}}), "line 1"),
        ] {
            let error = read(entry).unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("secret"), "{error}");
        }
        let error = user(b"secret", &image("r.example", "os")).unwrap_err().to_string();
        assert!(error.contains("line 1") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn a_registry_says_what_it_wants() {
        let bearer = Challenge::Bearer {
            realm: "https://auth.example/token".into(),
            service: Some("registry.example".into()),
            scope: Some("repository:a/os:pull".into()),
        };
        let header =
            r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/os:pull""#;
        assert_eq!(challenge([header]), Some(bearer.clone()));
        assert_eq!(challenge([r#"Basic realm="x""#, header]), Some(bearer.clone()));
        assert_eq!(challenge([format!(r#"Basic realm="x", {header}"#).as_str()]), Some(bearer));
        assert_eq!(challenge([r#"basic realm="nkd""#]), Some(Challenge::Basic));
        for nothing in ["", "Negotiate", "Bearer", r#"Bearer service="x""#, "=,\"\u{1}"] {
            assert_eq!(challenge([nothing]), None, "{nothing}");
        }
    }
}
