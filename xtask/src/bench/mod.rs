//! `cargo xtask bench NAME`: ours and a peer side by side on this machine, as ratios.
//!
//! The two take turns, round by round, so that what else this machine does meets both; each figure is the median of its
//! rounds. A ratio is ours divided by the best peer's: above 1 is better for a rate, worse for a cost. What has no peer
//! (`storm_...`, `fleet_...`, `agent_...`) is given as it is.

mod cluster;
mod dhcp;
mod fleet;
mod http;
mod lane;
mod storm;
mod tftp;
mod updates;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};

use crate::{apt, build, image, repository};

/// Packages of the peers.
const PEERS: [&str; 5] = ["dnsmasq-base", "kea-admin", "kea-dhcp4-server", "nginx-light", "tftpd-hpa"];

#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// TFTP, HTTP image serving and DHCP against the servers that Debian has, and a boot storm
    Netboot(Netboot),
    /// Clusters of namespace machines beside a shell script with kubeadm, and a thousand nodes that only live
    Cluster(Cluster),
    /// The channel's repository beside nginx, deltas, the graph for ten thousand nodes, and a rollout over a thousand
    Updates(Updates),
}

#[derive(Args)]
struct Updates {
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
    /// Rounds of each figure
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only these parts
    #[arg(long, value_enum)]
    only: Vec<UpdatePart>,
    /// Take our programs from this folder instead of a release build
    #[arg(long)]
    programs: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum UpdatePart {
    /// The planner, and a rollout under a clock that nobody waits for
    Rollout,
    /// Pulling from the repository beside nginx, and what deltas save
    Pull,
    /// The graph for ten thousand nodes
    Graph,
}

#[derive(Args)]
struct Cluster {
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
    /// Rounds of each figure
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How many nodes the fleet has
    #[arg(long, default_value_t = 1000)]
    nodes: u16,
    /// Only these parts
    #[arg(long, value_enum)]
    only: Vec<ClusterPart>,
    /// Take our programs from this folder instead of a release build
    #[arg(long)]
    programs: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ClusterPart {
    /// From `nkd cluster apply` to Ready: one control plane with one worker
    Small,
    /// The same with four workers
    Large,
    /// A thousand enrolled nodes that ask for their task and tell that they live
    Fleet,
}

#[derive(Args)]
struct Netboot {
    /// Print one JSON object as the last line
    #[arg(long)]
    json: bool,
    /// Rounds of each figure
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only these parts
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Take our programs from this folder instead of a release build
    #[arg(long)]
    programs: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Http,
    Tftp,
    Dhcp,
    /// A thousand machines that boot at the same time, against the whole service
    Storm,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.bench {
        Bench::Netboot(netboot) => run_netboot(netboot),
        Bench::Cluster(cluster) => run_cluster(cluster),
        Bench::Updates(updates) => run_updates(updates),
    }
}

fn run_updates(arguments: &Updates) -> Result<()> {
    let programs = match &arguments.programs {
        Some(folder) => Programs { examples: folder.clone(), binaries: folder.clone() },
        None => Programs::build()?,
    };
    apt::ensure_stopped(&["nginx-light"], &image::logs()?)?;
    build::packages(&["curl", "gnupg", "openssl", "ostree"])?;
    let wanted = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let mut table = Table::default();
    if wanted(UpdatePart::Rollout) {
        updates::rollout(arguments.rounds, &mut table).context("simulated rollout")?;
    }
    if wanted(UpdatePart::Pull) {
        updates::pulls(&programs, arguments.rounds, &mut table).context("pull")?;
    }
    if wanted(UpdatePart::Graph) {
        updates::graph(&programs, arguments.rounds, &mut table).context("graph")?;
    }
    table.print(arguments.json);
    Ok(())
}

fn run_cluster(arguments: &Cluster) -> Result<()> {
    let programs = match &arguments.programs {
        Some(folder) => Programs { examples: folder.clone(), binaries: folder.clone() },
        None => Programs::build()?,
    };
    let wanted = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let mut table = Table::default();
    for (part, workers) in [(ClusterPart::Small, 1), (ClusterPart::Large, 4)] {
        if wanted(part) {
            cluster::measure(&programs, arguments.rounds, workers, &mut table).context("bring-up")?;
        }
    }
    if wanted(ClusterPart::Fleet) {
        fleet::measure(&programs, arguments.rounds, arguments.nodes, &mut table).context("fleet")?;
    }
    table.print(arguments.json);
    Ok(())
}

fn run_netboot(netboot: &Netboot) -> Result<()> {
    let programs = match &netboot.programs {
        Some(folder) => Programs { examples: folder.clone(), binaries: folder.clone() },
        None => Programs::build()?,
    };
    apt::ensure_stopped(&PEERS, &image::logs()?)?;
    let wanted = |part| netboot.only.is_empty() || netboot.only.contains(&part);
    let mut table = Table::default();
    if wanted(Part::Http) {
        http::measure(&programs, netboot.rounds, &mut table).context("HTTP")?;
    }
    if wanted(Part::Tftp) {
        tftp::measure(&programs, netboot.rounds, &mut table).context("TFTP")?;
    }
    if wanted(Part::Dhcp) {
        dhcp::measure(&programs, netboot.rounds, &mut table).context("DHCP")?;
    }
    if wanted(Part::Storm) {
        storm::measure(&programs, netboot.rounds, &mut table).context("boot storm")?;
    }
    table.print(netboot.json);
    Ok(())
}

/// Where our programs are.
struct Programs {
    examples: PathBuf,
    binaries: PathBuf,
}

impl Programs {
    fn build() -> Result<Self> {
        let mut cargo = Command::new("cargo");
        cargo.args(["build", "--release", "-p", "nkd-server", "--bins", "--examples"]).current_dir(repository());
        ensure!(cargo.status().context("cannot run cargo")?.success(), "the release build failed");
        // Alone: together with the service it would be built with the service's features.
        let mut cargo = Command::new("cargo");
        cargo.args(["build", "--release", "-p", "nkd-agent"]).current_dir(repository());
        ensure!(cargo.status().context("cannot run cargo")?.success(), "the release build of the agent failed");
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
        let binaries = target.join("release");
        Ok(Self { examples: binaries.join("examples"), binaries })
    }

    fn example(&self, name: &str) -> Result<PathBuf> {
        existing(self.examples.join(name))
    }

    fn binary(&self, name: &str) -> Result<PathBuf> {
        existing(self.binaries.join(name))
    }
}

fn existing(program: PathBuf) -> Result<PathBuf> {
    ensure!(program.is_file(), "no program {}", program.display());
    Ok(program)
}

/// A program of Debian, in the folders for root's programs too.
fn peer(name: &str, package: &str) -> Result<PathBuf> {
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    match folders.iter().map(|folder| PathBuf::from(folder).join(name)).find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!("no {name} on this machine, though {package} is installed"),
    }
}

/// Whether more or less is better.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Better {
    More,
    Less,
}

/// The figures of all rounds, by measurement and server.
#[derive(Default)]
struct Table {
    rows: BTreeMap<String, Row>,
}

struct Row {
    unit: &'static str,
    better: Better,
    figures: BTreeMap<&'static str, Vec<f64>>,
}

/// The name of our own server in the table.
const OURS: &str = "nkd";

impl Table {
    fn add(&mut self, name: &str, unit: &'static str, better: Better, server: &'static str, figure: f64) {
        eprintln!("{name}: {server} {figure:.3} {unit}");
        let row = self.rows.entry(name.to_owned()).or_insert_with(|| Row { unit, better, figures: BTreeMap::new() });
        row.figures.entry(server).or_default().push(figure);
    }

    fn print(&self, json: bool) {
        let mut ratios = serde_json::Map::new();
        for (name, row) in &self.rows {
            for (server, figures) in &row.figures {
                println!("{name:<28} {server:<10} {:>10.3} {}  {figures:.3?}", median(figures), row.unit);
            }
            match row.ratio() {
                Some((peer, ratio)) => {
                    println!("{name:<28} {OURS} / {peer}: {ratio:.3}");
                    ratios.insert(name.clone(), ratio.into());
                }
                None => drop(ratios.insert(name.clone(), row.figures.get(OURS).map_or(f64::NAN, |f| median(f)).into())),
            }
        }
        if json {
            println!("{}", serde_json::json!({ "ratios": ratios }));
        }
    }
}

impl Row {
    /// Ours against the best peer.
    fn ratio(&self) -> Option<(&'static str, f64)> {
        let ours = median(self.figures.get(OURS)?);
        let peers = self.figures.iter().filter(|(server, _)| **server != OURS);
        let peers = peers.map(|(server, figures)| (*server, median(figures)));
        let best = match self.better {
            Better::More => peers.max_by(|one, other| one.1.total_cmp(&other.1)),
            Better::Less => peers.min_by(|one, other| one.1.total_cmp(&other.1)),
        };
        best.map(|(peer, figure)| (peer, ours / figure))
    }
}

/// The middle figure, or the mean of the two in the middle; not a number if there is none.
fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (odd, middle) if odd % 2 == 1 => sorted[middle],
        (_, middle) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_of_medians_against_the_best_peer() {
        let mut table = Table::default();
        for (server, figures) in [(OURS, [3.0, 100.0, 2.0]), ("slow", [1.0, 1.0, 1.0]), ("fast", [2.0, 9.0, 1.0])] {
            for figure in figures {
                table.add("rate", "MB/s", Better::More, server, figure);
                table.add("cost", "s/GB", Better::Less, server, figure);
            }
        }
        assert_eq!(table.rows["rate"].ratio(), Some(("fast", 1.5)));
        assert_eq!(table.rows["cost"].ratio(), Some(("slow", 3.0)));
        assert_eq!(median(&[4.0, 1.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
