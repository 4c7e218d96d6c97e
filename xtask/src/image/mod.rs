//! `cargo xtask image`: build a node image, or find the one that the same inputs made earlier, and print where it is.
//! Kubernetes for the tests is made the same way.

mod cache;
mod housekeeper;
mod inputs;
mod kubernetes;
mod lab;
mod nestos;
mod ostree;

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;

#[derive(clap::Args)]
pub struct Arguments {
    /// Which image
    #[arg(value_enum, default_value_t = Kind::Lab)]
    kind: Kind,
    /// Version of the image: part of the file names, of os-release and of the commit
    #[arg(long, default_value = "1", value_parser = version)]
    version: String,
    /// The agent's program; without it the workspace's own is built
    #[arg(long)]
    agent: Option<PathBuf>,
    /// A lab image that holds this version of Kubernetes, such as v1.20.2 [default: it holds none]
    #[arg(long)]
    kubernetes: Option<String>,
    /// Directory of the agent's unit files [default: agent/dist]
    #[arg(long)]
    agent_units: Option<PathBuf>,
    /// The operator's static program; without it the workspace's own is built
    #[arg(long)]
    housekeeper: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// The stand-in for NestOS, from Debian packages
    Lab,
    /// What the tests run Kubernetes from: programs, container images, runtime tools
    Kubernetes,
    /// The operator's program as a container image, an archive
    Housekeeper,
    /// An ostree that checks ed25519 signatures, for the tests
    Ostree,
    /// The real thing: its recipe is checked, its base is needed to build it
    Nestos,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    match arguments.kind {
        Kind::Lab => println!("{}", lab::image(arguments)?.display()),
        Kind::Kubernetes => println!("{}", kubernetes::image()?.display()),
        Kind::Housekeeper => println!("{}", housekeeper::image(arguments.housekeeper.as_deref())?.display()),
        Kind::Ostree => println!("{}", ostree::image()?.display()),
        Kind::Nestos => nestos::check()?,
    }
    Ok(())
}

/// The lab image of this checkout in a version, with the workspace's own agent, and with Kubernetes if one is given.
pub fn lab(version: &str, kubernetes: Option<&str>) -> Result<PathBuf> {
    let kubernetes = kubernetes.map(str::to_owned);
    let (version, kind) = (version.to_owned(), Kind::Lab);
    lab::image(&Arguments { kind, version, agent: None, agent_units: None, housekeeper: None, kubernetes })
}

/// The operator's image, an archive.
pub fn housekeeper() -> Result<PathBuf> {
    housekeeper::image(None)
}

/// Kubernetes for the tests.
pub fn kubernetes() -> Result<PathBuf> {
    kubernetes::image()
}

/// The directory of an ostree that checks ed25519 signatures.
pub fn ostree() -> Result<PathBuf> {
    ostree::image()
}

/// The installer of the lab image.
pub fn installer() -> Result<PathBuf> {
    lab::installer()
}

/// Where the logs of everything that is built go.
pub fn logs() -> Result<PathBuf> {
    Ok(cache::Cache::of_user()?.logs())
}

/// It ends up in file names and in shell scripts.
fn version(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(fits) {
        Ok(text.to_owned())
    } else {
        Err("a version is letters, digits, dots and dashes, and begins with a letter or digit".to_owned())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn versions() {
        for good in ["1", "24.03-LTS.20240903.0"] {
            assert!(super::version(good).is_ok(), "{good}");
        }
        for bad in ["", "-1", "../x", "1 2", "$(x)"] {
            assert!(super::version(bad).is_err(), "{bad}");
        }
    }
}
