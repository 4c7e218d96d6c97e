//! `nkd-agent`: see [`USAGE`].
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

use std::path::PathBuf;
use std::process::ExitCode;

use nkd_agent::balance::{self, Balancer};
use nkd_agent::facts::{Root, gather, net};
use nkd_agent::{Options, Patience, Reboot, chain, kubeadm, status, update};
use nkd_api::agent::AGENT_CONFIG_PATH;
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "\
nkd-agent: enrolls this machine with its nkd service, installs, reports

  nkd-agent run [--config FILE] [--state DIR] [--socket FILE] [--root DIR]
  nkd-agent status [-o text|json] [--socket FILE]
  nkd-agent facts [--root DIR]
  nkd-agent balance [--config FILE]                 (in a unit of its own)
  nkd-agent update [--config FILE] [--state DIR] [--os PROGRAM] [--gate SECONDS]   (in a unit of its own)
  nkd-agent kubeadm --order FILE [--state DIR]      (run by the agent, in a unit of its own)
  nkd-agent --version | --help

  --config FILE   what Ignition left for the agent (/etc/nkd/agent.json), or the balancer's (/etc/nkd/balancer.json)
  --state DIR     key, certificate and journal (/var/lib/nkd-agent)
  --socket FILE   local status (/run/nkd-agent.sock)
  --os PROGRAM    does what ostree does elsewhere, on a system with images of another kind (see docs/updates.md)
  --gate SECONDS  how long a node may take to be healthy after an update (900)
  --root DIR      where /sys, /proc and /dev are (/)
";

/// Exit code of a bad command line (EX_USAGE).
const USAGE_ERROR: u8 = 64;

enum Command {
    Run(Box<Options>),
    Status { socket: PathBuf, json: bool },
    Facts(PathBuf),
    Kubeadm { order: PathBuf, state: PathBuf },
    Balance(balance::Options),
    Update(Box<update::Options>),
    Print(String),
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Command, String> {
    let command = arguments.next().ok_or("a command is missing")?;
    let mut options = Options {
        config: AGENT_CONFIG_PATH.into(),
        state: "/var/lib/nkd-agent".into(),
        root: "/".into(),
        run_dir: "/run/nkd-agent".into(),
        orders: "/run/nkd".into(),
        socket: status::SOCKET.into(),
        path: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
        reboot: Reboot::System,
        patience: Patience::default(),
    };
    let mut balancer = balance::Options::default();
    let (mut os, mut settings) = (None, update::state::Settings::default());
    let (mut json, mut order) = (false, None);
    while let Some(flag) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{flag} takes a value"));
        match (command.as_str(), flag.as_str()) {
            ("run" | "update", "--config") => options.config = value()?.into(),
            ("balance", "--config") => balancer.config = value()?.into(),
            ("kubeadm", "--order") => order = Some(PathBuf::from(value()?)),
            ("update", "--os") => os = Some(value()?),
            ("update", "--gate") => {
                let seconds = value()?;
                let seconds = seconds.parse().map_err(|_| format!("--gate takes seconds, not `{seconds}`"))?;
                settings.gate = std::time::Duration::from_secs(seconds);
            }
            ("run" | "kubeadm" | "update", "--state") => options.state = value()?.into(),
            ("run" | "status", "--socket") => options.socket = value()?.into(),
            ("run" | "facts", "--root") => options.root = value()?.into(),
            ("status", "-o") => {
                json = match value()?.as_str() {
                    "json" => true,
                    "text" => false,
                    other => return Err(format!("-o takes text or json, not `{other}`")),
                }
            }
            _ => return Err(format!("`{command}` does not take `{flag}`")),
        }
    }
    match command.as_str() {
        "run" => Ok(Command::Run(Box::new(options))),
        "status" => Ok(Command::Status { socket: options.socket, json }),
        "facts" => Ok(Command::Facts(options.root)),
        "kubeadm" => Ok(Command::Kubeadm { order: order.ok_or("`kubeadm` needs --order FILE")?, state: options.state }),
        "balance" => Ok(Command::Balance(balancer)),
        "update" => Ok(Command::Update(Box::new(update::Options {
            config: options.config,
            state: options.state,
            root: options.root,
            path: options.path,
            reboot: options.reboot,
            os,
            settings,
        }))),
        "--version" | "-V" => Ok(Command::Print(format!("nkd-agent {}\n", env!("CARGO_PKG_VERSION")))),
        "--help" | "-h" | "help" => Ok(Command::Print(USAGE.to_owned())),
        other => Err(format!("`{other}` is not a command")),
    }
}

fn main() -> ExitCode {
    let command = match parse(std::env::args().skip(1)) {
        Ok(command) => command,
        Err(problem) => {
            eprint!("nkd-agent: {problem}\n\n{USAGE}");
            return ExitCode::from(USAGE_ERROR);
        }
    };
    match execute(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nkd-agent: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command {
        Command::Print(text) => print!("{text}"),
        Command::Facts(root) => {
            let facts = gather(&Root::new(&root), &net::addresses());
            println!("{}", serde_json::to_string_pretty(&facts)?);
        }
        Command::Kubeadm { order, state } => kubeadm::run(&order, &state)?,
        Command::Status { socket, json } => {
            let status = runtime
                .block_on(status::ask(&socket))
                .map_err(|error| format!("no agent answers at {}: {error}", socket.display()))?;
            if json {
                println!("{}", serde_json::to_string_pretty(&status)?);
            } else {
                print!("{}", text(&status));
            }
        }
        Command::Run(options) => {
            log();
            runtime.block_on(until_told(nkd_agent::run(*options)))?;
        }
        Command::Update(options) => {
            log();
            runtime.block_on(until_told(update::run(*options)))?;
        }
        Command::Balance(options) => {
            log();
            runtime.block_on(until_told(async { Balancer::bind(options).await?.run().await }))?;
        }
    }
    Ok(())
}

fn log() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).without_time().init();
}

/// Works until it is told to end.
async fn until_told<E>(work: impl Future<Output = Result<(), E>>) -> Result<(), Box<dyn std::error::Error>>
where
    E: std::error::Error + 'static,
{
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        result = work => result?,
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// The status for people.
fn text(status: &status::Status) -> String {
    let date = |date: Option<time::OffsetDateTime>| date.map_or("-".to_owned(), |date| date.to_string());
    [
        ("machine", status.machine.to_string()),
        ("purpose", format!("{}, generation {}", status.purpose.as_str(), status.generation)),
        ("service", status.server.clone()),
        ("phase", status.phase.clone()),
        ("message", status.message.clone()),
        ("last contact", date(status.last_contact)),
        (
            "certificate",
            format!("renewed after {}, ends {}", date(status.renew_after), date(status.certificate_expires)),
        ),
        ("version", status.version.clone()),
    ]
    .iter()
    .map(|(name, value)| format!("{name:13} {value}\n"))
    .collect()
}
