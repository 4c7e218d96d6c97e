//! `cargo xtask dist`: the released programs and their Debian packages, in `target/dist` of the repository.

mod contents;
mod elf;
mod package;
mod programs;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub use programs::{agent_binary, checked_static, housekeeper_binary};

use crate::{apt, build, image, repository};

const PACKAGES: [&str; 4] = ["binutils", "coreutils", "dpkg", "gzip"];

#[derive(clap::Args)]
pub struct Arguments {
    /// Pack `nkd` and `nkd-agent` of this folder instead of a release build
    #[arg(long)]
    programs: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    apt::ensure(&PACKAGES, &image::logs()?)?;
    let out = repository().join("target/dist");
    let (nkd, agent) = match &arguments.programs {
        Some(folder) => (folder.join("nkd"), programs::checked_agent(folder.join("nkd-agent"))?),
        None => (programs::nkd_binary()?, programs::agent_binary()?),
    };
    // What an earlier version left must not be taken for this one's.
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("cannot empty {}", out.display()))?;
    }
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let built = contents::Built::gather(&nkd, &agent)?;
    let mut made = vec![copy(&nkd, &out)?, copy(&agent, &out)?];
    made.push(contents::nkd(&built)?.build(&built.release, &out)?);
    made.push(contents::agent(&built)?.build(&built.release, &out)?);
    let names: Vec<_> = made.iter().filter_map(|path| path.file_name()).map(Into::into).collect();
    fs::write(out.join("SHA256SUMS"), build::output_in(&out, "sha256sum", &names)?)?;
    for path in made {
        println!("{} ({} KiB)", path.display(), fs::metadata(&path)?.len() / 1024);
    }
    Ok(())
}

fn copy(program: &Path, out: &Path) -> Result<PathBuf> {
    let to = out.join(program.file_name().context("a program has a name")?);
    fs::copy(program, &to).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(to)
}
