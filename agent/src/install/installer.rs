//! The external installer: its arguments, and a run of it.
#![expect(clippy::disallowed_methods, reason = "runs the installer")]

use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use nkd_api::agent::InstallTask;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// Bytes of the log that are kept for the report.
pub const LOG_TAIL: usize = 4096;

/// The arguments of `coreos-installer install` and its forks.
///
/// `--insecure` permits that there is no signature: the relay checks the digest. The Ignition file is local, so
/// nothing else is needed for it. Values stand after `=`, so that none can be taken for an option.
#[must_use]
pub fn arguments(task: &InstallTask, image_url: &str, ignition: &Path, device: &str) -> Vec<String> {
    let mut arguments = vec![
        "install".to_owned(),
        format!("--image-url={image_url}"),
        "--insecure".to_owned(),
        format!("--ignition-file={}", ignition.display()),
        "--platform=metal".to_owned(),
    ];
    if !task.firstboot_args.is_empty() {
        arguments.push(format!("--firstboot-args={}", task.firstboot_args));
    }
    arguments.extend(task.append_kargs.iter().map(|karg| format!("--append-karg={karg}")));
    arguments.push(device.to_owned());
    arguments
}

/// True for a plain program name: it is looked for on the search path and nowhere else.
#[must_use]
pub fn is_program_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('-')
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// The last bytes of what the installer wrote.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn add(&self, bytes: &[u8]) {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend_from_slice(bytes);
        let excess = tail.len().saturating_sub(LOG_TAIL);
        tail.drain(..excess);
    }

    /// The tail as text of at most [`LOG_TAIL`] bytes.
    #[must_use]
    pub fn tail(&self) -> String {
        let tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&tail);
        let mut from = text.len().saturating_sub(LOG_TAIL);
        while !text.is_char_boundary(from) {
            from += 1;
        }
        text[from..].to_owned()
    }
}

/// Runs the installer to its end. It dies when this future is dropped.
///
/// # Errors
/// When it cannot be started.
pub async fn run(program: &str, arguments: &[String], path: &str, log: &Log) -> io::Result<ExitStatus> {
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", path)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (status, (), ()) = tokio::join!(child.wait(), collect(out, log), collect(err, log));
    status
}

async fn collect(stream: Option<impl AsyncRead + Unpin>, log: &Log) {
    let Some(mut stream) = stream else {
        return;
    };
    let mut buffer = vec![0; 8192];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => {
                tracing::info!(installer = %String::from_utf8_lossy(&buffer[..length]).trim_end());
                log.add(&buffer[..length]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_those_that_the_installer_takes() {
        let task = InstallTask {
            generation: 3,
            image_url: "http://192.0.2.1:8080/images/a.raw.zst".into(),
            image_sha256: nkd_api::Sha256Digest([0; 32]),
            image_size: 1,
            disk: None,
            installer: "coreos-installer".into(),
            append_kargs: vec!["console=ttyS0,115200".into(), "-odd".into()],
            firstboot_args: "rd.neednet=1 ip=dhcp".into(),
        };
        let found = arguments(&task, "http://127.0.0.1:4000/a.raw.zst", Path::new("/run/x.ign"), "/dev/vda");
        assert_eq!(
            found,
            [
                "install",
                "--image-url=http://127.0.0.1:4000/a.raw.zst",
                "--insecure",
                "--ignition-file=/run/x.ign",
                "--platform=metal",
                "--firstboot-args=rd.neednet=1 ip=dhcp",
                "--append-karg=console=ttyS0,115200",
                "--append-karg=-odd",
                "/dev/vda",
            ]
        );
        let bare = InstallTask { append_kargs: Vec::new(), firstboot_args: String::new(), ..task };
        assert_eq!(arguments(&bare, "http://127.0.0.1:1/i", Path::new("/c"), "/dev/vda").len(), 6);
    }

    #[test]
    fn only_plain_names_are_programs() {
        for good in ["coreos-installer", "nestos-installer"] {
            assert!(is_program_name(good), "{good}");
        }
        for bad in ["", "-x", "/bin/sh", "../sh", "sh -c", "A"] {
            assert!(!is_program_name(bad), "{bad}");
        }
    }

    #[test]
    fn the_log_keeps_its_last_4_kib() {
        let log = Log::default();
        for _ in 0..3000 {
            log.add("é!".as_bytes());
        }
        let tail = log.tail();
        assert!(tail.len() <= LOG_TAIL && tail.len() > LOG_TAIL - 8 && tail.ends_with("é!"), "{}", tail.len());
    }
}
