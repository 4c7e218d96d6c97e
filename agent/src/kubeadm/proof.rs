//! Whether what was restored is what was saved, by what etcd's own programs answer (pure).

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Where Kubernetes keeps everything.
pub(super) const KEYS: &str = "/registry/";
/// A key that every cluster has.
pub(super) const KUBE_SYSTEM: &str = "/registry/namespaces/kube-system";

/// `snapshot status -w json`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct Saved {
    /// The newest revision in the file.
    pub revision: u64,
}

/// What an etcd says of itself at a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content {
    /// Its revision now.
    pub revision: u64,
    /// Keys below [`KEYS`].
    pub keys: u64,
    /// Digest of its store up to the revision, and from which revision on it holds history; two digests can be compared when
    /// these are the same. None: its history begins just there, and etcd gives no digest then.
    pub hash: Option<(u64, i64)>,
}

#[derive(Deserialize)]
struct Range {
    header: Header,
    /// Left out when nothing is there. With a limit it is still the number of all.
    #[serde(default)]
    count: u64,
}

#[derive(Deserialize)]
struct Header {
    revision: u64,
}

#[derive(Deserialize)]
struct Hashed {
    #[serde(rename = "HashKV")]
    of: Hash,
}

#[derive(Deserialize)]
struct Hash {
    hash: u64,
    #[serde(default)]
    compact_revision: i64,
}

#[derive(Deserialize)]
struct Endpoint {
    #[serde(rename = "Status")]
    status: Version,
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

fn read<T: DeserializeOwned>(what: &str, text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| format!("the answer of etcdctl on {what} does not read: {error}"))
}

/// Of `snapshot status`.
pub(super) fn saved(text: &str) -> Result<Saved, String> {
    read("the snapshot", text)
}

/// Revision and number of keys, of `get`.
pub(super) fn range(text: &str) -> Result<(u64, u64), String> {
    let range: Range = read("keys", text)?;
    Ok((range.header.revision, range.count))
}

/// Of `endpoint hashkv`.
pub(super) fn hash(text: &str) -> Result<(u64, i64), String> {
    let all: Vec<Hashed> = read("its digest", text)?;
    let first = all.into_iter().next().ok_or("etcdctl has asked nobody for a digest")?;
    Ok((first.of.hash, first.of.compact_revision))
}

/// Of `endpoint status`.
pub(super) fn version(text: &str) -> Result<String, String> {
    let all: Vec<Endpoint> = read("its version", text)?;
    Ok(all.into_iter().next().ok_or("etcdctl has asked nobody for a version")?.status.version)
}

/// What could not be held against the running etcd, and why; or why the snapshot is none. `live`: the running etcd at the
/// revision of the snapshot, or why it has not said what it holds there.
pub(super) fn judge(
    saved: Saved,
    restored: Content,
    kube_system: u64,
    live: Result<Content, String>,
) -> Result<Option<String>, String> {
    let Content { revision, keys, hash } = restored;
    if revision < saved.revision {
        return Err(format!("it holds revision {}, and what was restored only {revision}", saved.revision));
    }
    if keys == 0 {
        return Err(format!("nothing is below {KEYS} in what was restored"));
    }
    if kube_system != 1 {
        return Err(format!("{KUBE_SYSTEM} is not in what was restored"));
    }
    let live = match live {
        Ok(live) => live,
        Err(why) => return Ok(Some(format!("not held against the running etcd: {why}"))),
    };
    if live.keys != keys {
        return Err(format!(
            "at revision {} etcd has {} keys below {KEYS}, and what was restored {keys}",
            saved.revision, live.keys
        ));
    }
    match (live.hash, hash) {
        (Some((of_live, since)), Some((of_it, from))) if since == from => match of_live == of_it {
            true => Ok(None),
            false => Err(format!("at revision {} etcd holds something else than what was restored", saved.revision)),
        },
        _ => Ok(Some(
            "held against the running etcd by the number of its keys alone: it gave no digest that can be compared"
                .to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_etcdctl_prints_is_read() {
        let status = r#"{"hash":2196963048,"revision":6,"totalKey":9,"totalSize":20480}"#;
        assert_eq!(saved(status), Ok(Saved { revision: 6 }));
        let get = r#"{"header":{"cluster_id":11701000360937476151,"revision":6},"kvs":[{"key":"L3I="}],"more":true,"count":4}"#;
        assert_eq!(range(get), Ok((6, 4)));
        assert_eq!(range(r#"{"header":{"revision":6}}"#), Ok((6, 0)));
        let kv = r#"[{"Endpoint":"unix://client:1","HashKV":{"header":{"revision":6},"hash":2589663483,"compact_revision":-1}}]"#;
        assert_eq!(hash(kv), Ok((2_589_663_483, -1)));
        let of = r#"[{"Endpoint":"unix://client:1","Status":{"header":{"revision":6},"version":"3.4.23"}}]"#;
        assert_eq!(version(of).as_deref(), Ok("3.4.23"));
        for bad in ["", "[]", "{}", "Error: x"] {
            assert!(hash(bad).is_err() && version(bad).is_err() && saved(bad).is_err() && range(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn it_counts_when_everything_that_was_there_came_back() {
        let saved = Saved { revision: 60 };
        let good = Content { revision: 60, keys: 200, hash: Some((7, 50)) };
        assert_eq!(judge(saved, good, 1, Ok(good)), Ok(None));
        // What was not compared is said.
        let forgotten = judge(saved, Content { revision: 61, ..good }, 1, Err("it is away".to_owned()));
        assert_eq!(forgotten, Ok(Some("not held against the running etcd: it is away".to_owned())));
        for hash in [Some((8, 55)), None] {
            let told = judge(saved, good, 1, Ok(Content { hash, ..good })).unwrap().unwrap();
            assert!(told.contains("by the number of its keys alone"), "{told}");
            assert!(judge(saved, good, 1, Ok(Content { hash, keys: 201, ..good })).unwrap_err().contains("201 keys"));
        }
        assert!(judge(saved, good, 0, Err("it is away".to_owned())).unwrap_err().contains("kube-system is not"));
        for (restored, kube_system, live, why) in [
            (Content { revision: 59, ..good }, 1, good, "only 59"),
            (Content { keys: 0, ..good }, 0, good, "nothing is below"),
            (good, 0, good, "kube-system is not"),
            (good, 1, Content { keys: 201, ..good }, "201 keys"),
            (good, 1, Content { hash: Some((8, 50)), ..good }, "something else"),
        ] {
            let told = judge(saved, restored, kube_system, Ok(live)).unwrap_err();
            assert!(told.contains(why), "{told}");
        }
    }
}
