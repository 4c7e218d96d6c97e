//! The store on real files.
#![allow(clippy::disallowed_methods, reason = "files and clocks of tests")]

use nkd_api::agent::Purpose;
use nkd_api::machine::Identity;
use nkd_api::upgrade::{Upgrade, UpgradeState};
use nkd_api::user::AuditEntry;
use serde_json::json;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use uuid::Uuid;

use super::*;
use crate::cluster::record::Record;
use crate::machine::lifecycle::new_machine;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

async fn store(dir: &Path) -> Store {
    Store::open(dir, Seal::from_key_file(&dir.join("secret.key"), true).unwrap()).await.unwrap()
}

fn machine(n: u8) -> nkd_api::machine::Machine {
    let identity = Identity { macs: vec![nkd_api::MacAddr([2, 0, 0, 0, 0, n])], ..Identity::default() };
    new_machine(Uuid::from_u128(n.into()), identity, NOW)
}

fn change(machine: &nkd_api::machine::Machine, revision: i64) -> Change<'_> {
    Change { machine, revision, events: &[], effects: RowEffects::default() }
}

fn token(machine: Uuid, hash: u8) -> NewToken {
    NewToken {
        hash: [hash; 32],
        scope: Scope::Enroll,
        machine,
        generation: 1,
        purpose: Purpose::Node,
        boot: Uuid::from_u128(1),
        expires: NOW + time::Duration::hours(1),
    }
}

#[tokio::test]
async fn files_are_private_and_secrets_are_not_in_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let secret = b"-----BEGIN PRIVATE KEY----- very secret";
    store.save_secrets(&[("ca/key", secret)]).await.unwrap();
    assert_eq!(store.secret("ca/key").await.unwrap().unwrap(), secret);
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0, "{}", path.display());
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(11).any(|w| w == b"very secret"), "{}", path.display());
    }
    store.close().await;
}

#[tokio::test]
async fn secrets_of_a_prefix_are_removed_but_those_that_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let names = ["a/join/1", "a/join/2", "a/pki", "a_join/3", "b/join/1"];
    let all: Vec<(&str, &[u8])> = names.iter().map(|name| (*name, &b"x"[..])).collect();
    store.save_secrets(&all).await.unwrap();
    store.delete_secrets("a/join/", &["a/join/2".to_owned(), "never/there".to_owned()]).await.unwrap();
    for name in names {
        assert_eq!(store.secret(name).await.unwrap().is_none(), name == "a/join/1", "{name}");
    }
    store.delete_secrets("a/join/", &[]).await.unwrap();
    assert!(store.secret("a/join/2").await.unwrap().is_none() && store.secret("a/pki").await.unwrap().is_some());
    store.close().await;
}

#[tokio::test]
async fn another_key_file_opens_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let first = store(dir.path()).await;
    first.save_secrets(&[("x", b"y")]).await.unwrap();
    first.close().await;
    std::fs::remove_file(dir.path().join("secret.key")).unwrap();
    assert!(matches!(store(dir.path()).await.secret("x").await, Err(StoreError::Seal(SealError::Open(_)))));
    // And a database without its key file is refused rather than given a new key.
    std::fs::remove_file(dir.path().join("secret.key")).unwrap();
    assert!(Seal::from_key_file(&dir.path().join("secret.key"), false).is_err());
}

#[tokio::test]
async fn names_and_macs_are_unique_and_stale_writes_are_told_from_taken_ones() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    store.save_machine(change(&machine(1), 0), NOW).await.unwrap();
    let mut same_name = machine(2);
    same_name.name = machine(1).name;
    assert!(matches!(store.save_machine(change(&same_name, 0), NOW).await, Err(StoreError::Conflict(_))));
    let mut same_mac = machine(3);
    same_mac.identity = machine(1).identity;
    assert!(matches!(store.save_machine(change(&same_mac, 0), NOW).await, Err(StoreError::Conflict(_))));
    // The failed writes left nothing behind.
    assert_eq!(store.machines().await.unwrap().len(), 1);
    store.save_machine(change(&machine(1), 1), NOW).await.unwrap();
    assert!(matches!(store.save_machine(change(&machine(1), 1), NOW).await, Err(StoreError::Stale)));
}

#[tokio::test]
async fn a_token_is_used_once_except_by_the_key_that_used_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let m = machine(1);
    store.save_machine(change(&m, 0), NOW).await.unwrap();
    store.issue_node_token(&token(m.id, 7), NOW).await.unwrap();
    let (ours, theirs) = ([1; 32], [2; 32]);
    let try_it = |user: Option<[u8; 32]>, now| {
        let store = store.clone();
        async move { store.use_token(&[7; 32], Scope::Enroll, user.as_ref(), now).await.unwrap() }
    };
    assert!(
        matches!(store.use_token(&[7; 32], Scope::Config, None, NOW).await.unwrap(), TokenUse::Unknown),
        "another scope"
    );
    assert!(matches!(try_it(Some(ours), NOW).await, TokenUse::Granted(_)));
    assert!(matches!(try_it(Some(ours), NOW).await, TokenUse::Granted(_)), "the answer may have been lost");
    assert!(matches!(try_it(Some(theirs), NOW).await, TokenUse::Reused(..)));
    assert!(matches!(try_it(None, NOW).await, TokenUse::Reused(..)));
    store.issue_node_token(&token(m.id, 8), NOW).await.unwrap();
    let late = store.use_token(&[8; 32], Scope::Enroll, Some(&ours), NOW + time::Duration::hours(2)).await.unwrap();
    assert!(matches!(late, TokenUse::Expired(_)));
}

#[tokio::test]
async fn a_configuration_is_given_again_to_whom_it_did_not_reach() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let m = machine(1);
    let issue = |hash, scope, boot| NewToken { scope, boot: Uuid::from_u128(boot), ..token(m.id, hash) };
    let tokens = vec![issue(1, Scope::Config, 1), issue(2, Scope::Enroll, 1), issue(3, Scope::Config, 2)];
    let effects = RowEffects { tokens, ..RowEffects::default() };
    store.save_machine(Change { machine: &m, revision: 0, events: &[], effects }, NOW).await.unwrap();
    let (ours, theirs) = ([1; 32], [2; 32]);
    let take = |hash: u8, scope, user: [u8; 32], minutes| {
        let store = store.clone();
        let now = NOW + time::Duration::minutes(minutes);
        async move { store.use_token(&[hash; 32], scope, Some(&user), now).await.unwrap() }
    };
    assert!(matches!(take(1, Scope::Config, ours, 0).await, TokenUse::Granted(_)));
    assert!(matches!(take(1, Scope::Config, ours, 1).await, TokenUse::Granted(_)), "the connection broke");
    assert!(matches!(take(1, Scope::Config, theirs, 1).await, TokenUse::Reused(..)), "from elsewhere");
    assert!(matches!(take(1, Scope::Config, ours, 6).await, TokenUse::Reused(..)), "too late for a broken connection");
    assert!(matches!(take(2, Scope::Enroll, ours, 1).await, TokenUse::Granted(_)));
    assert!(matches!(take(1, Scope::Config, ours, 1).await, TokenUse::Reused(..)), "it did arrive: the agent enrolled");
    // Another boot has come since.
    assert!(matches!(take(3, Scope::Config, ours, 2).await, TokenUse::Granted(_)));
    assert!(matches!(take(1, Scope::Config, ours, 2).await, TokenUse::Reused(..)));
    // One token of an installed node at a time.
    store.issue_node_token(&token(m.id, 8), NOW).await.unwrap();
    store.issue_node_token(&token(m.id, 9), NOW).await.unwrap();
    assert!(matches!(take(8, Scope::Enroll, ours, 3).await, TokenUse::Superseded { .. }));
    assert!(matches!(take(9, Scope::Enroll, ours, 3).await, TokenUse::Granted(_)));
}

#[tokio::test]
async fn strangers_that_nobody_labels_are_forgotten_after_a_week() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let (stranger, mut labelled, mut accepted, mut fresh) = (machine(1), machine(2), machine(3), machine(4));
    labelled.labels.insert("rack".into(), "7".into());
    accepted.accepted = true;
    fresh.last_seen = NOW + time::Duration::days(2);
    for machine in [&stranger, &labelled, &accepted, &fresh] {
        store.save_machine(change(machine, 0), NOW).await.unwrap();
    }
    assert_eq!(store.count_unknown().await.unwrap(), 3);
    store.prune(NOW + time::Duration::days(7) - time::Duration::seconds(1)).await.unwrap();
    assert_eq!(store.machines().await.unwrap().len(), 4);
    store.prune(NOW + time::Duration::days(8)).await.unwrap();
    let left: Vec<Uuid> = store.machines().await.unwrap().iter().map(|m| m.id).collect();
    assert_eq!(left.len(), 3);
    assert!(!left.contains(&stranger.id));
}

#[tokio::test]
async fn signs_of_life_are_shown_at_once_and_written_every_five_minutes() {
    let dir = tempfile::tempdir().unwrap();
    let store_a = store(dir.path()).await;
    let mut m = machine(1);
    let at = |seconds: i64| NOW + time::Duration::seconds(seconds);
    let seen = async |store: &Store| store.machine(m.id).await.unwrap().unwrap().0.last_seen;
    assert!(!store_a.hear(m.id, at(1)), "nobody knows it: its record is to be written");
    store_a.save_machine(change(&m, 0), NOW).await.unwrap();
    assert!(store_a.hear(m.id, at(299)));
    assert_eq!(seen(&store_a).await, at(299));
    assert_eq!(store_a.machines().await.unwrap()[0].last_seen, at(299));
    assert!(store_a.hear(m.id, at(200)), "two that came in the other order");
    assert_eq!(seen(&store_a).await, at(299));
    assert!(!store_a.hear(m.id, at(300)), "long enough");
    assert!(!store_a.hear(m.id, at(-1)), "the clock was put back");
    m.last_seen = at(300);
    store_a.save_machine(change(&m, 1), at(300)).await.unwrap();
    assert!(store_a.hear(m.id, at(599)));
    // Another service over the same state has what was written, and writes the next one.
    drop(store_a);
    let store_b = store(dir.path()).await;
    assert_eq!(store_b.machine(m.id).await.unwrap().unwrap().0.last_seen, at(300));
    assert!(!store_b.hear(m.id, at(601)));
}

#[tokio::test]
async fn the_same_report_is_counted_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let m = machine(1);
    store.save_machine(change(&m, 0), NOW).await.unwrap();
    let events = [NewEvent { kind: "x", message: "m".into(), cause: "c".into() }];
    let effects = RowEffects { report: Some(Uuid::from_u128(5)), ..RowEffects::default() };
    let with = |revision| Change { machine: &m, revision, events: &events, effects: effects.clone() };
    assert!(store.save_machine(with(1), NOW).await.unwrap().is_some());
    assert!(store.save_machine(with(2), NOW).await.unwrap().is_none());
    assert_eq!(store.events(Some(m.id), None, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_backup_of_a_running_store_restores_into_an_empty_folder_only() {
    let (dir, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let running = store(dir.path()).await;
    running.save_machine(change(&machine(1), 0), NOW).await.unwrap();
    running.save_secrets(&[("ca/key", b"secret")]).await.unwrap();
    let (archive, key) = (target.path().join("nkd.backup"), dir.path().join("secret.key"));
    backup(dir.path(), &key, &archive).await.unwrap();
    // Through a link, which stays one. What is no file stays what it is.
    let (link, socket) = (dir.path().join("link"), dir.path().join("socket"));
    std::os::unix::fs::symlink(&archive, &link).unwrap();
    std::fs::write(&archive, b"an older one").unwrap();
    backup(dir.path(), &key, &link).await.unwrap();
    assert!(link.is_symlink() && std::fs::metadata(&archive).unwrap().len() > 12);
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for taken in [&socket, &dir.path().to_path_buf()] {
        assert!(matches!(backup(dir.path(), &key, taken).await, Err(BackupError::NoFile(_))), "{taken:?}");
        assert!(!taken.is_file());
    }
    assert_eq!(std::fs::metadata(&archive).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(restore(&archive, dir.path(), &key).await, Err(BackupError::Occupied(_))));
    let fresh = target.path().join("state");
    restore(&archive, &fresh, &fresh.join("secret.key")).await.unwrap();
    let restored = store(&fresh).await;
    assert_eq!(restored.machines().await.unwrap().len(), 1);
    assert_eq!(restored.secret("ca/key").await.unwrap().unwrap(), b"secret");
    // A damaged one changes nothing.
    let bytes = std::fs::read(&archive).unwrap();
    std::fs::write(&archive, &bytes[..bytes.len() / 2]).unwrap();
    let other = target.path().join("other");
    assert!(matches!(restore(&archive, &other, &other.join("secret.key")).await, Err(BackupError::NotABackup { .. })));
    assert!(!other.join("nkd.db").exists());
}

#[tokio::test]
async fn a_number_of_a_release_is_never_given_again() {
    let (dir, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let running = store(dir.path()).await;
    let channel = |numbers: &[u32]| -> nkd_api::channel::Channel {
        let release = |number: &u32| {
            json!({"number": number, "version": "1", "commit": number.to_string(), "reference": "",
            "publishedAt": "2026-01-01T00:00:00Z"})
        };
        let releases: Vec<serde_json::Value> = numbers.iter().map(release).collect();
        serde_json::from_value(
            json!({"name": "stable", "profile": "lab", "architecture": "x86_64", "releases": releases}),
        )
        .unwrap()
    };
    assert_eq!(running.next_release("stable").await.unwrap(), 1);
    running.save_channel(&channel(&[1, 2, 3]), 0).await.unwrap();
    let (_, revision) = running.channel("stable").await.unwrap().unwrap();
    // Its newest one went, whoever took it.
    running.save_channel(&channel(&[1, 2]), revision).await.unwrap();
    assert_eq!(running.next_release("stable").await.unwrap(), 4);
    let stale = running.save_channel(&channel(&[9]), revision).await;
    assert!(matches!(stale, Err(StoreError::Stale)));
    running.delete_channel(&channel(&[1, 2]), revision + 1, &[], NOW).await.unwrap();
    assert_eq!(running.next_release("stable").await.unwrap(), 4, "what was refused gave none");
    assert_eq!(running.next_release("edge").await.unwrap(), 1);
    running.save_channel(&channel(&[4]), 0).await.unwrap();

    let archive = target.path().join("nkd.backup");
    backup(dir.path(), &dir.path().join("secret.key"), &archive).await.unwrap();
    let fresh = target.path().join("state");
    restore(&archive, &fresh, &fresh.join("secret.key")).await.unwrap();
    assert_eq!(store(&fresh).await.next_release("stable").await.unwrap(), 5);

    // A service of before this: the list and the audit trail know.
    for target in ["gone 7", "gone 12", "stable 3"] {
        let (who, action, target) = ("test".into(), "channel.retire".into(), target.into());
        running.audit(&AuditEntry { at: NOW, who, action, target, detail: String::new() }).await.unwrap();
    }
    sqlx::query("DROP TABLE channel_number").execute(&running.write).await.unwrap();
    sqlx::query("DELETE FROM _sqlx_migrations WHERE version = 11").execute(&running.write).await.unwrap();
    running.close().await;
    let later = store(dir.path()).await;
    let next = async |name| later.next_release(name).await.unwrap();
    assert_eq!((next("stable").await, next("gone").await, next("edge").await), (5, 13, 1));
}

#[tokio::test]
async fn upgrades_that_went_on_are_held_in_what_is_restored() {
    let (dir, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let running = store(dir.path()).await;
    let channel = json!({"name": "stable", "profile": "lab", "architecture": "x86_64", "releases": []});
    running.save_channel(&serde_json::from_value(channel).unwrap(), 0).await.unwrap();
    let (_, revision) = running.channel("stable").await.unwrap().unwrap();
    let mut ids = Vec::new();
    for (name, state, aborted) in [
        ("on", "running", false),
        ("early", "preparing", false),
        ("off", "aborting", true),
        ("over", "complete", false),
        ("was-off", "aborted", true),
    ] {
        let cluster = json!({"apiVersion": "nkd.io/v1alpha1", "kind": "Cluster", "metadata": {"name": name},
            "spec": {"kubernetes": {"version": "v1.20.2"}, "pools": []}});
        let record = Record::new(Uuid::new_v4(), serde_json::from_value(cluster).unwrap(), NOW);
        running.save_cluster(&record, 0, &[], "test", NOW).await.unwrap();
        let upgrade = json!({"cluster": name, "number": 3, "order": {}, "version": "2", "fromKubernetes": "v1.20.2",
            "state": state, "detail": "as it was", "paused": false, "aborted": aborted, "retry": 0, "by": "test",
            "startedAt": "2026-01-01T00:00:00Z", "nodes": []});
        let upgrade: Upgrade = serde_json::from_value(upgrade).unwrap();
        running.begin_upgrade((record.id, 1), &upgrade, ("stable", revision), |_| true).await.unwrap();
        ids.push((record.id, upgrade));
    }
    let archive = target.path().join("nkd.backup");
    backup(dir.path(), &dir.path().join("secret.key"), &archive).await.unwrap();
    let fresh = target.path().join("state");
    let mut held = restore(&archive, &fresh, &fresh.join("secret.key")).await.unwrap();
    held.sort_by(|a, b| a.cluster.cmp(&b.cluster));
    let upgrade = |cluster: &str| HeldUpgrade { cluster: cluster.into(), number: 3 };
    assert_eq!(held, [upgrade("early"), upgrade("on")]);
    let restored = store(&fresh).await;
    for (id, before) in ids {
        let (now, _) = restored.newest_upgrade(id).await.unwrap().unwrap();
        if before.state.is_end() || before.aborted {
            assert_eq!(now, before, "what is over, or was called off, is left as it was");
            continue;
        }
        assert_eq!((now.state, now.paused, now.restored), (UpgradeState::Paused, true, true));
        let resume = format!("`nkd upgrade resume {}`", before.cluster);
        assert!(now.detail.contains(&resume) && !now.detail.contains("CLUSTER"), "{}", now.detail);
    }
    // What was never restored is not held.
    assert_eq!(running.upgrades_under_way().await.unwrap().iter().filter(|upgrade| upgrade.restored).count(), 0);
}

#[tokio::test]
#[ignore = "namespace tier: needs root"]
async fn what_root_restores_belongs_to_the_owner_of_the_folder() {
    let (dir, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let _running = store(dir.path()).await;
    let archive = dir.path().join("nkd.backup");
    backup(dir.path(), &dir.path().join("secret.key"), &archive).await.unwrap();
    let owner = |path: &Path| {
        let there = std::fs::metadata(path).unwrap();
        (there.uid(), there.gid())
    };
    // One folder is there and the user's own; the other is made in a folder of the user's.
    let own = target.path().join("own");
    std::fs::create_dir(&own).unwrap();
    std::os::unix::fs::chown(&own, Some(4711), Some(4712)).unwrap();
    std::os::unix::fs::chown(target.path(), Some(4713), Some(4714)).unwrap();
    for (state, wanted) in [(own, (4711, 4712)), (target.path().join("deep/new"), (4713, 4714))] {
        restore(&archive, &state, &state.join("secret.key")).await.unwrap();
        let files: Vec<_> = std::fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 2, "{files:?}");
        for path in files.iter().chain([&state]) {
            assert_eq!(owner(path), wanted, "{}", path.display());
        }
    }
    assert_eq!(owner(&target.path().join("deep")), (4713, 4714));
}

#[tokio::test]
async fn a_superseded_token_tells_whether_two_parties_boot_as_one_machine() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let m = machine(1);
    let boots = [Uuid::from_u128(1), Uuid::from_u128(2)];
    let config = |at: usize| NewToken { scope: Scope::Config, boot: boots[at], ..token(m.id, at as u8 + 1) };
    let node = NewToken { boot: boots[1], ..token(m.id, 9) };
    let write = |revision, tokens, supersede| Change {
        machine: &m,
        revision,
        events: &[],
        effects: RowEffects { tokens, supersede, ..RowEffects::default() },
    };
    let issued = vec![config(0), config(1), node];
    store.save_machine(write(0, issued, Supersede::Nothing), NOW).await.unwrap();
    let take = |hash: u8, scope| {
        let store = store.clone();
        async move { store.use_token(&[hash; 32], scope, None, NOW).await.unwrap() }
    };
    // A script alone takes nothing away from anybody; the second boot's fetch does, from the other boot only.
    assert!(matches!(take(2, Scope::Config).await, TokenUse::Granted(_)));
    store.save_machine(write(1, Vec::new(), Supersede::OtherBoots(boots[1])), NOW).await.unwrap();
    assert!(matches!(take(1, Scope::Config).await, TokenUse::Superseded { contested: true, .. }));
    assert!(matches!(take(9, Scope::Enroll).await, TokenUse::Granted(_)), "the boot that goes on");
    // After an operator's order what was given out before accuses nobody, used or not.
    let fresh = NewToken { boot: boots[1], ..token(m.id, 5) };
    store.save_machine(write(2, vec![fresh], Supersede::Nothing), NOW).await.unwrap();
    store.save_machine(write(3, Vec::new(), Supersede::All), NOW).await.unwrap();
    for (hash, scope) in [(1, Scope::Config), (2, Scope::Config), (5, Scope::Enroll), (9, Scope::Enroll)] {
        assert!(matches!(take(hash, scope).await, TokenUse::Unknown), "{hash}");
    }
}

/// After a full disk the driver counts a transaction that is none; nothing may be acknowledged into it.
#[tokio::test]
async fn after_a_full_disk_what_is_acknowledged_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    store.save_machine(change(&machine(1), 0), NOW).await.unwrap();
    sqlx::query("PRAGMA max_page_count = 1").execute(&store.write).await.unwrap();
    let mut big = machine(2);
    big.labels.insert("fill".into(), "x".repeat(100_000));
    assert!(matches!(store.save_machine(change(&big, 0), NOW).await, Err(StoreError::Full(_))));
    assert_eq!(store.machines().await.unwrap().len(), 1);
    sqlx::query("PRAGMA max_page_count = 1000000").execute(&store.write).await.unwrap();
    // A write that is rolled back, then ones that are acknowledged, and readers on other connections.
    assert!(matches!(store.save_machine(change(&machine(1), 7), NOW).await, Err(StoreError::Stale)));
    store.save_machine(change(&machine(3), 0), NOW).await.unwrap();
    store.save_secrets(&[("x", b"y")]).await.unwrap();
    assert!(store.machine(machine(3).id).await.unwrap().is_some());
    assert_eq!(store.secret("x").await.unwrap().unwrap(), b"y");
}

#[tokio::test]
async fn writes_of_one_group_fail_each_for_itself() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let machines: Vec<_> = (1..=20).map(machine).collect();
    // While the only connection is taken, everything else waits and becomes one group.
    let taken = store.write.begin().await.unwrap();
    // The fifth is tried twice, the second time as if it were new.
    let twice = machines.iter().chain([&machines[4]]);
    let group = futures_util::future::join_all(twice.map(|machine| store.save_machine(change(machine, 0), NOW)));
    let (outcomes, ()) = tokio::join!(group, async {
        tokio::task::yield_now().await;
        taken.rollback().await.unwrap();
    });
    let failed: Vec<usize> = outcomes.iter().enumerate().filter(|(_, one)| one.is_err()).map(|(at, _)| at).collect();
    assert_eq!(failed, [20]);
    assert!(matches!(outcomes[20], Err(StoreError::Conflict(_))));
    assert_eq!(store.machines().await.unwrap().len(), 20);
    // Durable for another process, too: nothing is left in memory.
    store.close().await;
    assert_eq!(self::store(dir.path()).await.machines().await.unwrap().len(), 20);
}

#[tokio::test]
async fn nobody_in_a_group_is_told_of_success_when_the_commit_fails() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    store.save_machine(change(&machine(1), 0), NOW).await.unwrap();
    // A foreign key that is checked at the commit only, and does not hold.
    sqlx::raw_sql(
        "CREATE TABLE late (machine TEXT REFERENCES machine (id) DEFERRABLE INITIALLY DEFERRED);
         CREATE TRIGGER late AFTER INSERT ON machine WHEN NEW.name = 'm-020000000003'
         BEGIN INSERT INTO late VALUES ('nobody'); END;",
    )
    .execute(&store.write)
    .await
    .unwrap();
    let broken = machine(3);
    assert_eq!(broken.name, "m-020000000003");
    let others = [machine(2), broken, machine(4)];
    let taken = store.write.begin().await.unwrap();
    let group = futures_util::future::join_all(others.iter().map(|one| store.save_machine(change(one, 0), NOW)));
    let (outcomes, ()) = tokio::join!(group, async {
        tokio::task::yield_now().await;
        taken.rollback().await.unwrap();
    });
    assert!(outcomes.iter().all(|one| matches!(one, Err(StoreError::Commit(_)))), "{outcomes:?}");
    assert_eq!(store.machines().await.unwrap().len(), 1);
    // The next group is not concerned.
    store.save_machine(change(&machine(2), 0), NOW).await.unwrap();
}

#[tokio::test]
async fn a_caller_that_leaves_undoes_nothing_and_stops_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let taken = store.write.begin().await.unwrap();
    let (left, stayed) = (machine(1), machine(2));
    let mut leaving = Box::pin(store.save_machine(change(&left, 0), NOW));
    tokio::select! {
        biased;
        outcome = &mut leaving => panic!("nothing can be written yet: {outcome:?}"),
        () = std::future::ready(()) => {}
    }
    drop(leaving);
    let (outcome, ()) = tokio::join!(store.save_machine(change(&stayed, 0), NOW), async {
        tokio::task::yield_now().await;
        taken.rollback().await.unwrap();
    });
    outcome.unwrap();
    assert_eq!(store.machines().await.unwrap().len(), 2);
}
