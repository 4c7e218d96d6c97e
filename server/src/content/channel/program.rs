//! Runs the programs that hold the formats: `ostree` and `gpg`.
//!
//! A thread waits for each. Nothing of that can be given up from outside, so those that run are known by their numbers: a
//! service whose time to stop is over ends them. Each leads a process group, which ends with it. So an interrupt from the
//! keyboard is the service's alone, and what was ordered comes to its end.

#![expect(clippy::disallowed_methods, reason = "runs programs")]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{self, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::panic::resume_unwind;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, thread};

use rustix::io::retry_on_intr;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::io::AsyncReadExt as _;

use super::left;

/// Where systems have `gpg` and what belongs to it.
pub(super) const GNUPG: &str = "gnupg, or gnupg2 on NestOS and openEuler";
/// What ostree says when the library that it signs and verifies with finds no `gpg`.
const NO_GPG: &str = "Invalid crypto engine";

/// A program could not do it.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It could not be started.
    #[error("cannot run {program}: install it on the service's host (package {package})")]
    Start {
        /// Its name.
        program: &'static str,
        /// What has it.
        package: &'static str,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// It wants gpg, which is not there.
    #[error("{0} cannot run gpg: install it on the service's host (package {GNUPG})")]
    NoGpg(&'static str),
    /// It said no.
    #[error("{program} {verb}: {said}")]
    Refused {
        /// Its name.
        program: &'static str,
        /// What it was to do.
        verb: String,
        /// Its last words.
        said: String,
    },
    /// It could not be talked to.
    #[error("lost contact with {program}")]
    Lost {
        /// Its name.
        program: &'static str,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// It waited for something that does not come.
    #[error(
        "{program} {verb}: it did nothing for {} minutes, and was ended: what it reads is no file, or its disk does not answer",
        .patience.as_secs() / 60
    )]
    Stalled {
        /// Its name.
        program: &'static str,
        /// What it was to do.
        verb: String,
        /// How long that was waited for.
        patience: Duration,
    },
    /// No program is started any more.
    #[error("the service is stopping: try again")]
    Stopped,
}

/// The programs that this service runs.
static PROGRAMS: Programs = Programs { running: Mutex::new(Some(BTreeSet::new())), patience: PATIENCE };

/// A program that neither computes nor reads nor writes for so long waits for what does not come, and others for it. The slowest
/// disk takes less to write what a program has left in memory.
const PATIENCE: Duration = Duration::from_secs(600);
/// So many looks are taken at it in that time.
const LOOKS: u32 = 20;

/// Programs that run.
struct Programs {
    /// None: they were ended, and no more are started.
    running: Mutex<Option<BTreeSet<i32>>>,
    /// How long a program may do nothing.
    patience: Duration,
}

/// Ends the programs that [`run`] waits for, and starts none any more.
pub fn end_programs() {
    PROGRAMS.end();
}

impl ProgramError {
    /// Whether there is a program to be installed first.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Start { .. } | Self::NoGpg(_))
    }

    /// Whether the program refused with these words.
    pub(super) fn says(&self, words: &str) -> bool {
        matches!(self, Self::Refused { said, .. } if said.contains(words))
    }
}

/// Runs `program` to its end; what it printed. `input` goes to its standard input.
pub(super) fn run<S: AsRef<OsStr>>(
    program: &'static str,
    package: &'static str,
    words: &[S],
    input: &[u8],
) -> Result<Vec<u8>, ProgramError> {
    PROGRAMS.run(program, package, words, input)
}

impl Programs {
    fn run<S: AsRef<OsStr>>(
        &self,
        program: &'static str,
        package: &'static str,
        words: &[S],
        input: &[u8],
    ) -> Result<Vec<u8>, ProgramError> {
        let mut command = Command::new(program);
        command.args(words).env("LC_ALL", "C.UTF-8").envs(left::mark()).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.start(command).map_err(|error| match error {
            Some(source) => ProgramError::Start { program, package, source },
            None => ProgramError::Stopped,
        })?;
        let number = Pid::from_child(&child);
        let (heard, is_stalled) = thread::scope(|scope| {
            let (heard, hearing) = mpsc::channel::<()>();
            let watching = thread::Builder::new().spawn_scoped(scope, move || self.watch(number, &hearing));
            let said = hear(&mut child, input);
            drop(heard);
            let is_stalled = watching.map(|watching| watching.join().unwrap_or_else(|panic| resume_unwind(panic)));
            (said, is_stalled.unwrap_or(false))
        });
        if heard.is_err() {
            // The first to know is who waits for it.
            let _ = child.kill();
        }
        let ended = self.wait(&mut child).and_then(|status| {
            let (stdout, stderr) = heard?;
            Ok(Output { status, stdout, stderr })
        });
        let output = ended.map_err(|source| ProgramError::Lost { program, source })?;
        if is_stalled && !output.status.success() {
            return Err(ProgramError::Stalled { program, verb: verb(words), patience: self.patience });
        }
        judged(program, words, output)
    }

    /// Ends a program that does nothing any more, unless it is heard to its end before. True: it was ended. Nobody must have
    /// asked yet how it ended.
    fn watch(&self, number: Pid, hearing: &mpsc::Receiver<()>) -> bool {
        let (mut seen, mut idle) = (Done::of(number), 0);
        while hearing.recv_timeout(self.patience / LOOKS) == Err(RecvTimeoutError::Timeout) {
            let now = Done::of(number);
            // Of one that cannot be looked at nothing is known.
            idle = if now.is_some() && now == seen { idle + 1 } else { 0 };
            seen = now;
            if idle >= LOOKS {
                let _ = kill_process_group(number, Signal::KILL);
                return true;
            }
        }
        false
    }

    fn running(&self) -> MutexGuard<'_, Option<BTreeSet<i32>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None: it is too late.
    fn start(&self, mut command: Command) -> Result<Child, Option<io::Error>> {
        // Under the lock, so that whoever ends them knows all of them.
        let mut running = self.running();
        let Some(running) = running.as_mut() else { return Err(None) };
        let child = command.spawn()?;
        running.insert(Pid::from_child(&child).as_raw_pid());
        Ok(child)
    }

    fn wait(&self, child: &mut Child) -> io::Result<std::process::ExitStatus> {
        let number = Pid::from_child(child);
        // Its number is its own until somebody asks how it ended. Then it must not be known here any more.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let waited = retry_on_intr(|| waitid(WaitId::Pid(number), options));
        if let Some(running) = self.running().as_mut() {
            running.remove(&number.as_raw_pid());
        }
        waited?;
        child.wait()
    }

    fn end(&self) {
        let mut running = self.running();
        for number in running.take().into_iter().flatten().filter_map(Pid::from_raw) {
            // Those that have ended are not told to.
            let _ = kill_process_group(number, Signal::KILL);
        }
    }
}

/// What a program has done so far: the ticks of the clock that it was on a processor, and what it has read and written.
#[derive(PartialEq, Eq)]
struct Done {
    ticks: [String; 2],
    bytes: String,
}

impl Done {
    fn of(number: Pid) -> Option<Self> {
        let of = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", number.as_raw_pid()));
        let stat = of("stat").ok()?;
        // Its name stands in brackets, and may have any characters.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11).map(str::to_owned);
        Some(Self { ticks: [fields.next()?, fields.next()?], bytes: of("io").unwrap_or_default() })
    }
}

/// Says `input` to a program; what it prints, and what it complains of.
fn hear(child: &mut Child, input: &[u8]) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        let complaining = thread::Builder::new().spawn_scoped(scope, || all_of(stderr))?;
        if let Some(mut pipe) = stdin {
            // It may not want to hear it all; its exit code tells. A key is small enough for the pipe.
            let _ = pipe.write_all(input);
        }
        let printed = all_of(stdout);
        let complained = complaining.join().unwrap_or_else(|panic| resume_unwind(panic));
        Ok((printed?, complained?))
    })
}

fn all_of(pipe: Option<impl Read>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// Runs `program` to its end, or ends it with all that it started: after `limit`, or when nobody waits for it any more.
pub(super) async fn run_within<S: AsRef<OsStr>>(
    program: &'static str,
    package: &'static str,
    words: &[S],
    limit: Duration,
) -> Result<(), ProgramError> {
    let mut command = tokio::process::Command::new(program);
    command
        .args(words)
        .env("LC_ALL", "C.UTF-8")
        .envs(left::mark())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let spawned = command.process_group(0).kill_on_drop(true).spawn();
    let mut child = spawned.map_err(|source| ProgramError::Start { program, package, source })?;
    let group = Group::of(&child);
    let mut complaints = child.stderr.take();
    let ending = async {
        let mut stderr = Vec::new();
        if let Some(pipe) = complaints.as_mut() {
            pipe.read_to_end(&mut stderr).await?;
        }
        // Last: from then on its number may be somebody else's.
        let status = child.wait().await?;
        Ok(Output { status, stdout: Vec::new(), stderr })
    };
    match tokio::time::timeout(limit, ending).await {
        Ok(Ok(output)) => {
            group.has_ended();
            judged(program, words, output).map(drop)
        }
        Ok(Err(source)) => Err(ProgramError::Lost { program, source }),
        Err(_) => {
            let said = format!("nothing came to an end in {} minutes", limit.as_secs() / 60);
            Err(ProgramError::Refused { program, verb: verb(words), said })
        }
    }
}

/// A process group, which ends with this. Its leader must not have been asked how it ended.
struct Group(Option<Pid>);

impl Group {
    fn of(leader: &tokio::process::Child) -> Self {
        Self(leader.id().and_then(|number| Pid::from_raw(number.try_into().ok()?)))
    }

    fn has_ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(number) = self.0 {
            // Those that have ended are not told to.
            let _ = kill_process_group(number, Signal::KILL);
        }
    }
}

/// What it printed, or its last words.
fn judged<S: AsRef<OsStr>>(program: &'static str, words: &[S], output: Output) -> Result<Vec<u8>, ProgramError> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().rsplit('\n').next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    if said.ends_with(NO_GPG) {
        return Err(ProgramError::NoGpg(program));
    }
    let said = if said.is_empty() { format!("it ended with {}", output.status) } else { said };
    Err(ProgramError::Refused { program, verb: verb(words), said })
}

fn verb<S: AsRef<OsStr>>(words: &[S]) -> String {
    let words = words.iter().map(|word| word.as_ref().to_string_lossy());
    words.into_iter().find(|word| !word.starts_with('-')).unwrap_or_default().into_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn programs() -> Programs {
        Programs { running: Mutex::new(Some(BTreeSet::new())), patience: PATIENCE }
    }

    #[test]
    fn what_does_nothing_any_more_is_ended_and_what_takes_its_time_is_not() {
        let programs = Programs { patience: Duration::from_secs(2), ..programs() };
        let place = tempfile::tempdir().unwrap();
        let pipe = place.path().join("pipe");
        Command::new("mkfifo").arg(&pipe).status().unwrap();
        let script = format!("read line <{}", pipe.display());
        let stalled = programs.run("sh", "dash", &["-c", &script], b"").unwrap_err();
        assert!(matches!(stalled, ProgramError::Stalled { .. }), "{stalled}");
        assert_eq!(*programs.running(), Some(BTreeSet::new()));
        // It reads for longer than that.
        let begun = Instant::now();
        let dd = "dd bs=1 count=1 if=/dev/zero of=/dev/null 2>/dev/null";
        let busy =
            format!("end=$(($(date +%s) + 5)); while [ $(date +%s) -lt $end ]; do {dd}; sleep 0.1; done; echo done");
        assert_eq!(programs.run("sh", "dash", &["-c", &busy], b"").unwrap(), b"done\n");
        assert!(begun.elapsed() > programs.patience);
    }

    #[test]
    fn much_is_heard_of_both_and_nothing_is_remembered() {
        let programs = programs();
        let much = "head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero; cat";
        assert_eq!(programs.run("sh", "dash", &["-c", much], b"said").unwrap().len(), 300_004);
        let refused = programs.run("sh", "dash", &["-c", "echo error: no >&2; exit 3"], b"").unwrap_err();
        assert!(refused.says("no") && !refused.says("error"), "{refused}");
        let missing = programs.run("/nowhere/program", GNUPG, &[""], b"").unwrap_err();
        assert!(
            missing.is_missing() && missing.to_string().ends_with("(package gnupg, or gnupg2 on NestOS and openEuler)")
        );
        let said = "echo error: GPG: gpgme_ctx_set_engine_info: GPGME: Invalid crypto engine >&2; exit 1";
        let missing = programs.run("sh", "dash", &["-c", said], b"").unwrap_err();
        assert!(missing.is_missing() && missing.to_string().starts_with("sh cannot run gpg: install it"), "{missing}");
        assert!(!refused.is_missing());
        assert_eq!(*programs.running(), Some(BTreeSet::new()));
    }

    #[test]
    fn those_that_run_are_ended_with_what_they_started_and_no_more_are_started() {
        let programs = programs();
        let begun = Instant::now();
        let limit = Duration::from_secs(20);
        thread::scope(|scope| {
            // Whoever it started holds the pipe too.
            let running = scope.spawn(|| programs.run("sh", "dash", &["-c", "sleep 40 & wait"], b""));
            while programs.running().as_ref().is_some_and(BTreeSet::is_empty) && begun.elapsed() < limit {
                thread::yield_now();
            }
            programs.end();
            let ended = running.join().unwrap().unwrap_err();
            assert!(ended.says("signal: 9"), "{ended}");
        });
        assert!(begun.elapsed() < limit);
        assert!(matches!(programs.run("true", "coreutils", &[""], b""), Err(ProgramError::Stopped)));
    }
    #[tokio::test]
    async fn what_nobody_waits_for_any_more_ends_with_what_it_started() {
        let place = tempfile::tempdir().unwrap();
        let (held, begun) = (place.path().join("held"), place.path().join("begun"));
        std::fs::File::create(&held).unwrap();
        let script = format!("flock --nonblock {0} sh -c 'touch {1}; sleep 100'; :", held.display(), begun.display());
        let running =
            tokio::spawn(
                async move { run_within("sh", "dash", &["-c", script.as_str()], Duration::from_secs(90)).await },
            );
        let until = async |so: &dyn Fn() -> bool| {
            let waiting = async {
                while !so() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(40), waiting).await.unwrap();
        };
        until(&|| begun.exists()).await;
        let lock = std::fs::File::open(&held).unwrap();
        assert!(lock.try_lock().is_err());
        running.abort();
        until(&|| lock.try_lock().is_ok()).await;
    }

    #[tokio::test]
    async fn what_takes_too_long_is_ended_and_said() {
        let (moment, long) = (Duration::from_millis(50), Duration::from_secs(90));
        let late = run_within("sleep", "coreutils", &["100"], moment).await.unwrap_err();
        assert!(late.says("nothing came to an end"), "{late}");
        let refused = ["-c", "echo error: no >&2; exit 3"];
        let refused = run_within("sh", "dash", &refused, long).await.unwrap_err();
        assert!(refused.says("no") && !refused.says("error"), "{refused}");
        run_within("true", "coreutils", &[""], long).await.unwrap();
    }
}
