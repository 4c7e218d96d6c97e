//! What the fuzzer has found worth keeping (`fuzz/corpus`), through the same targets without a fuzzer.
#![allow(clippy::disallowed_methods, reason = "reads the corpus")]

use std::path::Path;

use super::{bootplane, dhcp, tftp};

fn replay(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let inputs: Vec<_> = std::fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!((10..300).contains(&inputs.len()), "{} inputs in {}", inputs.len(), corpus.display());
    for input in inputs {
        let data = std::fs::read(&input).unwrap();
        // The name of the input stands beside the panic.
        println!("{}", input.display());
        run(&data);
    }
}

#[test]
fn dhcp_corpus() {
    replay("dhcp", dhcp::fuzz::run_one);
}

#[test]
fn tftp_corpus() {
    replay("tftp", tftp::fuzz::run_one);
}

#[test]
fn bootplane_corpus() {
    replay("bootplane", bootplane::fuzz::run_one);
}
