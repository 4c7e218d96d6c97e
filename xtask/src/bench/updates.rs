//! Updates: a repository of ours beside the same repository behind nginx, what a static delta saves, what the graph costs,
//! and a rollout under a clock that nobody waits for.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::http::noise;
use super::lane::{Lane, Peer, last_json, number};
use super::storm::Usage;
use super::{Better, OURS, Programs, Table, existing, peer};
use crate::build;

/// The trees of the releases: files, and the size of each.
const FILES: usize = 3_000;
const SIZE: usize = 40_000;
/// One file of so many is another one in the second release.
const CHANGED: usize = 25;
/// Releases of the graph, and nodes that ask for it.
const RELEASES: usize = 100;
const NODES: usize = 10_000;
const AT_ONCE: usize = 64;
/// The rollout, and the nodes of the plan that is timed.
const ROLLOUT: [&str; 2] = ["1000", "5000"];
const PORTS: [(&str, u16); 2] = [(OURS, 8443), ("nginx", 8444)];
const REF: &str = "lab/x86_64/stable";

pub fn pulls(programs: &Programs, rounds: usize, table: &mut Table) -> Result<()> {
    Stage::set(programs)?.pulls(rounds, table)
}

pub fn graph(programs: &Programs, rounds: usize, table: &mut Table) -> Result<()> {
    Stage::set(programs)?.graph(&programs.example("graph_load")?, rounds, table)
}

pub fn rollout(rounds: usize, table: &mut Table) -> Result<()> {
    build::cargo(&["build", "--release", "--package", "nkd-vm-tests", "--example", "simulated_rollout"])?;
    let program = existing(build::target().join("release/examples/simulated_rollout"))?;
    for _ in 0..rounds {
        let words = ROLLOUT.map(std::ffi::OsString::from);
        let told = last_json(&build::output(&program, &words)?)?;
        let mut add = |name: &str, unit, key| -> Result<()> {
            table.add(name, unit, Better::Less, OURS, number(&told, key)?);
            Ok(())
        };
        add("planner_5000", "ms", "planner_ms")?;
        add("planner_5000_worst", "ms", "planner_worst_ms")?;
        add("rollout_1000_wall", "s", "wall_seconds")?;
        add("rollout_1000_cluster", "s", "cluster_seconds")?;
    }
    Ok(())
}

/// A service with a channel, and nginx with the files of the same repository.
struct Stage {
    lane: Lane,
    folder: tempfile::TempDir,
    nkd: PathBuf,
    service: Peer,
    _nginx: Peer,
    commits: [String; 2],
}

impl Stage {
    fn set(programs: &Programs) -> Result<Self> {
        let (lane, nkd) = (Lane::new("updates")?, programs.binary("nkd")?);
        // Not in memory: what is pulled comes from a disk on real sites too.
        let folder = tempfile::tempdir_in("/var/tmp")?;
        let path = folder.path();
        // The workers of nginx run as another user.
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let source = path.join("source");
        let mut make = Tree::new(&source)?;
        let mut serve = lane.command(&nkd);
        serve.args(["serve", "--set", "dhcp.mode=off", "--state-dir"]).arg(path.join("state"));
        let first = path.join("state/first-admin-token");
        let ready = |lane: &Lane| lane.listens("-t", 8443) && first.exists();
        let service = lane.start(serve, &path.join("log"), ready)?;
        // Its first use deletes the file.
        std::fs::write(path.join("token"), std::fs::read_to_string(&first)?.trim())?;
        let ask = |words: &[&str]| ask(&lane, path, &nkd, words);
        let repository = source.join("repo").display().to_string();
        let mut commits = [String::new(), String::new()];
        for (number, commit) in commits.iter_mut().enumerate() {
            *commit = make.commit(number)?;
            ask(&["channel", "publish", "stable", "--ostree", &repository])?;
        }
        let nginx = nginx(&lane, path)?;
        Ok(Self { lane, folder, nkd, service, _nginx: nginx, commits })
    }

    fn ask(&self, words: &[&str]) -> Result<String> {
        ask(&self.lane, self.folder.path(), &self.nkd, words)
    }

    /// The first release whole from both servers, and the second upon it from ours.
    fn pulls(&self, rounds: usize, table: &mut Table) -> Result<()> {
        for round in 0..rounds {
            let mut servers = PORTS;
            // Neither always comes first.
            servers.rotate_left(round % 2);
            for (server, port) in servers {
                let client = self.folder.path().join("client");
                let ostree = |words: &[&str]| {
                    let mut command = self.lane.command("ostree");
                    command.arg(format!("--repo={}", client.display())).args(words);
                    self.lane.measure(command)
                };
                std::fs::create_dir(&client)?;
                // As on a node: deltas are not for archives.
                ostree(&["init", "--mode=bare-user"])?;
                let ca = self.folder.path().join(if server == OURS { "state/ca.pem" } else { "nginx.pem" });
                let ca = format!("--set=tls-ca-path={}", ca.display());
                let url = format!("https://127.0.0.1:{port}/ostree/lab");
                ostree(&["remote", "add", "--no-gpg-verify", &ca, "bench", &url])?;
                let begun = Instant::now();
                ostree(&["pull", "bench", &self.commits[0]])?;
                table.add("pull", "s", Better::Less, server, begun.elapsed().as_secs_f64());
                if server == OURS {
                    // As the agent does it, as ostree does it by itself, and without a delta.
                    self.updates(&client, table)?;
                }
                std::fs::remove_dir_all(&client)?;
            }
        }
        Ok(())
    }

    /// The bytes of an update upon what `client` has: with the delta as the agent takes it, as ostree takes it, and without.
    fn updates(&self, client: &Path, table: &mut Table) -> Result<()> {
        let delta = self.delta()?;
        let url = format!("https://127.0.0.1:8443/ostree/lab/{}", delta.display());
        let ca = self.folder.path().join("state/ca.pem").display().to_string();
        for way in [OURS, "ostree pull", "objects"] {
            let moved = client.with_extension("moved");
            let mut copy = self.lane.command("cp");
            copy.arg("-a").arg(client).arg(&moved);
            self.lane.measure(copy)?;
            let ostree = |words: &[&str]| {
                let mut command = self.lane.command("ostree");
                command.args(words).arg(format!("--repo={}", moved.display()));
                self.lane.measure(command)
            };
            let before = self.received()?;
            match way {
                OURS => {
                    let fetched = moved.join("fetched");
                    std::fs::create_dir(&fetched)?;
                    for entry in std::fs::read_dir(repository(&self.folder.path().join("state"))?.join(&delta))? {
                        let name = entry?.file_name().into_string().unwrap_or_default();
                        let mut curl = self.lane.command("curl");
                        curl.args(["--fail", "--silent", "--cacert", &ca, "--output"]).arg(fetched.join(&name));
                        curl.arg(format!("{url}/{name}"));
                        self.lane.measure(curl)?;
                    }
                    ostree(&["static-delta", "apply-offline", &fetched.display().to_string()])?;
                    ostree(&["pull", "--disable-static-deltas", "bench", &self.commits[1]])?;
                }
                "objects" => drop(ostree(&["pull", "--disable-static-deltas", "bench", &self.commits[1]])?),
                _ => drop(ostree(&["pull", "bench", &self.commits[1]])?),
            }
            let bytes = self.received()? - before;
            std::fs::remove_dir_all(&moved)?;
            table.add("update_bytes", "MB", Better::Less, way, bytes / 1e6);
        }
        Ok(())
    }

    /// Where the delta between the releases is, in the repository.
    fn delta(&self) -> Result<PathBuf> {
        let repository = repository(&self.folder.path().join("state"))?;
        let only = |folder: PathBuf| -> Result<PathBuf> {
            let first = std::fs::read_dir(&folder)?.next();
            Ok(first.with_context(|| format!("nothing is in {}", folder.display()))??.path())
        };
        Ok(only(only(repository.join("deltas"))?)?.strip_prefix(&repository)?.to_owned())
    }

    /// Bytes that have passed the loopback interface of the lane.
    fn received(&self) -> Result<f64> {
        let mut command = self.lane.command("cat");
        command.arg("/proc/net/dev");
        let text = self.lane.measure(command)?;
        let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:")).context("no interface lo")?;
        Ok(line.split_whitespace().next().context("no bytes")?.parse()?)
    }

    fn graph(&self, load: &Path, rounds: usize, table: &mut Table) -> Result<()> {
        let source = self.folder.path().join("fleet");
        let mut make = Tree::small(&source)?;
        let repository = source.join("repo").display().to_string();
        let mut first = String::new();
        for number in 0..RELEASES {
            let commit = make.commit(number)?;
            if number == 0 {
                first = commit;
            }
            self.ask(&["channel", "publish", "fleet", "--ostree", &repository])?;
        }
        for _ in 0..rounds {
            let before = Usage::of(self.service.pid())?;
            let mut command = self.lane.command(load);
            command.arg("https://127.0.0.1:8443").arg("--ca").arg(self.folder.path().join("state/ca.pem"));
            command.args(["--channel", "fleet", "--architecture", "x86_64", "--commit", &first]);
            command.args(["--nodes", &NODES.to_string(), "--at-once", &AT_ONCE.to_string()]);
            let told = last_json(&self.lane.measure(command)?)?;
            let after = Usage::of(self.service.pid())?;
            let requests = number(&told, "requests")?;
            table.add("graph_rate", "requests/s", Better::More, OURS, number(&told, "requests_per_second")?);
            let cpu = (after.cpu_seconds - before.cpu_seconds) / requests * 1e6;
            table.add("graph_cpu", "µs/request", Better::Less, OURS, cpu);
            table.add("graph_rss", "MiB", Better::Less, OURS, after.resident);
            table.add("graph_bytes", "bytes", Better::Less, OURS, number(&told, "bytes")?);
        }
        Ok(())
    }
}

fn ask(lane: &Lane, folder: &Path, nkd: &Path, words: &[&str]) -> Result<String> {
    let mut command = lane.command("env");
    command.args(["NKD_SERVER=https://127.0.0.1:8443", "NKD_CONFIG=/nonexistent"]);
    command.arg(format!("NKD_CA={}", folder.join("state/ca.pem").display()));
    command.arg(format!("NKD_TOKEN={}", std::fs::read_to_string(folder.join("token"))?)).arg(nkd).args(words);
    lane.measure(command)
}

/// nginx with the same files and TLS, set up as one would.
fn nginx(lane: &Lane, folder: &Path) -> Result<Peer> {
    let repository = repository(&folder.join("state"))?;
    let root = folder.display();
    let words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
    let more =
        ["-subj", "/CN=bench", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "nginx.key", "-out", "nginx.pem"];
    let words: Vec<std::ffi::OsString> = words.iter().chain(&more).map(std::ffi::OsString::from).collect();
    build::output_in(folder, "openssl", &words)?;
    // Its workers read what only the service may.
    let text = format!(
        "user root; worker_processes auto; daemon off; pid {root}/nginx.pid; error_log stderr;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 100000;
  client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;
  uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;
  server {{
    listen 127.0.0.1:8444 ssl http2;
    ssl_certificate {root}/nginx.pem; ssl_certificate_key {root}/nginx.key;
    location /ostree/lab/ {{ alias {}/; }}
  }}
}}
",
        repository.display()
    );
    let configuration = folder.join("nginx.conf");
    std::fs::write(&configuration, text)?;
    let mut command = lane.command(peer("nginx", "nginx-light")?);
    command.arg("-c").arg(configuration).args(["-e", "stderr"]);
    lane.start(command, &folder.join("nginx.log"), |lane| lane.listens("-t", 8444))
}

/// Where the service keeps the repository.
fn repository(state: &Path) -> Result<PathBuf> {
    let mut folders = vec![state.to_owned()];
    while let Some(folder) = folders.pop() {
        if folder.join("config").is_file() && folder.join("objects").is_dir() {
            return Ok(folder);
        }
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    anyhow::bail!("no repository in {}", state.display())
}

/// A repository of releases.
struct Tree {
    folder: PathBuf,
    files: usize,
}

impl Tree {
    fn new(folder: &Path) -> Result<Self> {
        Self::of(folder, FILES)
    }

    fn small(folder: &Path) -> Result<Self> {
        Self::of(folder, 1)
    }

    fn of(folder: &Path, files: usize) -> Result<Self> {
        std::fs::create_dir_all(folder.join("tree/usr"))?;
        let words = ["init", "--mode=archive", "--repo=repo"].map(std::ffi::OsString::from);
        std::fs::create_dir_all(folder.join("repo"))?;
        build::output_in(folder, "ostree", &words)?;
        let noise = noise(SIZE + files);
        for number in 0..files {
            // No two are the same.
            std::fs::write(folder.join(format!("tree/usr/{number}")), &noise[number..number + SIZE])?;
        }
        Ok(Self { folder: folder.to_owned(), files })
    }

    /// The release of this number; its commit.
    fn commit(&mut self, number: usize) -> Result<String> {
        if number > 0 {
            let noise = noise(SIZE + self.files + number);
            for file in (0..self.files).step_by(CHANGED) {
                // Another beginning, the same end.
                let path = self.folder.join(format!("tree/usr/{file}"));
                let mut bytes = std::fs::read(&path)?;
                bytes[..1000].copy_from_slice(&noise[self.files + number..][..1000]);
                std::fs::write(&path, bytes)?;
            }
        }
        let version = format!("--add-metadata-string=version={}", number + 1);
        let words = ["commit", "--repo=repo", "--branch", REF, "--tree=dir=tree", &version];
        let words = words.map(std::ffi::OsString::from);
        let commit = build::output_in(&self.folder, "ostree", &words)?.trim().to_owned();
        ensure!(commit.len() == 64, "ostree commit said {commit:?}");
        Ok(commit)
    }
}
