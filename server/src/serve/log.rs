//! Logs on standard error: text for people, JSON for machines.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::settings::LogSettings;

/// The client of clusters logs as errors what its callers tell with all they know: while one of three control planes is
/// off, every few seconds. A filter that names it wins.
const QUIET: &str = "kube_client=off";

/// Switches logging on. The filter of `NKD_LOG`, when it is set, wins over the settings.
#[expect(clippy::disallowed_methods, reason = "reads NKD_LOG")]
pub fn init(settings: &LogSettings) {
    let filter = std::env::var("NKD_LOG").unwrap_or_else(|_| settings.filter.clone());
    let filter = EnvFilter::try_new(format!("{QUIET},{filter}")).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A second initialisation, in tests, keeps the first.
    let _ = match settings.json {
        true => builder.json().flatten_event(true).try_init(),
        false => builder.with_target(false).try_init(),
    };
}
