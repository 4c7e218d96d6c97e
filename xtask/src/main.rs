//! `cargo xtask`: the project's chores, in the language of the project.

#![allow(clippy::disallowed_methods, reason = "a chore is input and output")]

mod apt;
mod bench;
mod build;
mod dist;
mod fuzz;
mod image;
mod lab;
mod metadata;
mod root;
mod soak;
mod stage;
mod suite;
mod test;
mod tidy;

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
    /// Rack two blank machines in QEMU and watch them become enrolled nodes
    Lab(lab::Arguments),
    /// Install what the tests need and run them all
    Test(test::Arguments),
    /// Run the tests that are too slow for every change
    Soak(soak::Arguments),
    /// Build a node image and print the directory it is in
    Image(image::Arguments),
    /// Measure ours and a peer side by side and print the ratios
    Bench(bench::Arguments),
    /// Fuzz the network boot engines
    Fuzz(fuzz::Arguments),
    /// Build the programs as they are released, with Debian packages, into target/dist
    Dist(dist::Arguments),
    /// Check form and rules: rustfmt, clippy, and what they cannot know
    Tidy,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().chore {
        Chore::Lab(arguments) => lab::run(&arguments),
        Chore::Test(arguments) => test::run(&arguments),
        Chore::Soak(arguments) => soak::run(&arguments),
        Chore::Image(arguments) => image::run(&arguments),
        Chore::Bench(arguments) => bench::run(&arguments),
        Chore::Fuzz(arguments) => fuzz::run(&arguments),
        Chore::Dist(arguments) => dist::run(&arguments),
        Chore::Tidy => tidy::run(),
    }
}

/// The root of the repository.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a directory of the repository").to_owned()
}
