//! The signed summary while releases are published: clients find a pair at any moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::harness::{Place, eventually};
use super::{Builder, REF, bears_both, good, publish, pull, system};

/// Releases that are published meanwhile.
const RELEASES: usize = 6;

/// Runs until it is told to stop, and then once more.
fn until<T: Send + 'static>(
    stop: &Arc<AtomicBool>,
    mut look: impl FnMut() -> T + Send + 'static,
) -> std::thread::JoinHandle<Vec<T>> {
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        let mut seen = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            seen.push(look());
        }
        seen.push(look());
        seen
    })
}

/// Both files, as a client asks for them: the signature first. None: one was not there.
fn pair(place: &Place) -> impl FnMut() -> Option<(Vec<u8>, Vec<u8>)> + Send + use<> {
    let (http, runtime) = (place.https().build().unwrap(), tokio::runtime::Builder::new_current_thread());
    let urls = ["/ostree/lab/summary.sig", "/ostree/lab/summary"].map(|path| place.api_url(path));
    let runtime = { runtime }.enable_all().build().unwrap();
    move || {
        runtime.block_on(async {
            let mut files = Vec::new();
            for url in &urls {
                let answer = http.get(url).send().await.unwrap();
                files.push(answer.error_for_status().ok()?.bytes().await.unwrap().to_vec());
            }
            let summary = files.pop()?;
            Some((files.pop()?, summary))
        })
    }
}

#[tokio::test]
async fn clients_find_a_summary_and_its_signature_at_any_moment_while_releases_are_published() {
    let place = Place::new();
    let service = place.start().await;
    let builder = Builder::new(&place);
    builder.build("0", b"none", &[]);
    publish(&place, &builder, &[]);
    let repo = system(&place, "node");
    let stop = Arc::new(AtomicBool::new(false));
    let polls = until(&stop, pair(&place));
    // One that has fetched the old signature and gets the new list asks again.
    let pulls = until(&stop, move || {
        let fetch = || pull(&repo, REF);
        let first = fetch();
        let said = String::from_utf8_lossy(&first.stderr).into_owned();
        let again = if first.status.success() { first } else { fetch() };
        (said, again)
    });
    for number in 1..=RELEASES {
        builder.build(&number.to_string(), &[u8::try_from(number).unwrap(); 99], &[]);
        publish(&place, &builder, &[]);
    }
    stop.store(true, Ordering::Relaxed);
    let polls = tokio::task::spawn_blocking(|| polls.join().unwrap()).await.unwrap();
    let pulls = tokio::task::spawn_blocking(|| pulls.join().unwrap()).await.unwrap();
    let missing = polls.iter().filter(|pair| pair.is_none()).count();
    assert_eq!(missing, 0, "of {} polls", polls.len());
    // Each publication writes it twice: with the release, and with the difference from the one before.
    let mut lists: Vec<&Vec<u8>> = polls.iter().flatten().map(|(_, summary)| summary).collect();
    lists.dedup();
    assert!(lists.len() > RELEASES, "{} in {} polls", lists.len(), polls.len());

    let key = std::fs::read_to_string(place.state().join("ostree/key.ed25519")).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let fits = |pair: &Option<(Vec<u8>, Vec<u8>)>| {
        let (signature, summary) = pair.as_ref().unwrap();
        let (at, of) = (scratch.path().join("summary.sig"), scratch.path().join("summary"));
        std::fs::write(&at, signature).unwrap();
        std::fs::write(&of, summary).unwrap();
        bears_both(key.trim(), &of, &at)
    };
    let fit: Vec<bool> = polls.iter().map(fits).collect();
    assert!(!fit.windows(2).any(|pair| pair == [false, false]), "it does not fit when it is asked for again: {fit:?}");
    for (said, again) in &pulls {
        let last = String::from_utf8_lossy(&again.stderr);
        assert!(again.status.success(), "{said}\nand again: {last}");
        assert!(!said.contains("no summary.sig found") && !said.contains("404"), "{said}");
    }

    // A kill between the two files, as it leaves them: a start makes a pair again.
    let served = place.state().join("ostree/lab");
    let left = good("find", &[served.join("tmp").to_str().unwrap(), "-name", "nkd-*"]);
    assert!(left.is_empty(), "{left}");
    service.kill();
    let (at, of) = (served.join("summary.sig"), served.join("summary"));
    std::fs::write(&of, &polls[0].as_ref().unwrap().1).unwrap();
    assert!(!bears_both(key.trim(), &of, &at));
    let _service = place.start().await;
    eventually("a pair again", async || bears_both(key.trim(), &of, &at).then_some(())).await;
    assert!(pull(&system(&place, "late"), REF).status.success());
}
