//! `cargo xtask`: the project's chores, in the language of the project.

#![allow(clippy::disallowed_methods, reason = "a chore is input and output")]

mod apt;
mod bench;
mod fuzz;
mod image;
mod root;
mod stage;

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of the project")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Build a node image and print the directory it is in
    Image(image::Arguments),
    /// Measure ours and a peer side by side and print the ratios
    Bench(bench::Arguments),
    /// Fuzz the network boot engines
    Fuzz(fuzz::Arguments),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().chore {
        Chore::Image(arguments) => image::run(&arguments),
        Chore::Bench(arguments) => bench::run(&arguments),
        Chore::Fuzz(arguments) => fuzz::run(&arguments),
    }
}

/// The root of the repository.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a directory of the repository").to_owned()
}
