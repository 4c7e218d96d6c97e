//! The `nkd` program: the service and its command line. The list of commands is `nkd_server::cli::Command`.

use std::process::ExitCode;

use nkd_server::cli::{self, Cli};

fn main() -> ExitCode {
    let cli = Cli::of_this_program();
    // Both sides of TLS use one provider; a second installation would be a defect, and is harmless.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(cli::run(cli));
    // A thread that hangs in the system must not keep the program from ending.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", cli::describe(&error));
            ExitCode::from(error.exit_code())
        }
    }
}
