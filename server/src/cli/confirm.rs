//! Asks for the name of what is to be lost.

use std::io::{IsTerminal, Write};

use super::CliError;

/// The name of a thing, as it was said with `--confirm` or is typed now. `loss`: what happens, in a sentence.
///
/// # Errors
/// [`CliError::Words`]: it is another name, or nobody is here to type it. [`CliError::Ended`]: the terminal was lost.
pub(super) fn name_of(
    thing: &str,
    name: &str,
    (said, command): (Option<String>, &str),
    loss: &str,
) -> Result<String, CliError> {
    let said = match said {
        Some(said) => said,
        None if std::io::stdin().is_terminal() => {
            eprint!("{loss}\nType the name of the {thing} to go on: ");
            // A prompt that cannot be shown is no reason to destroy anything: the name has to come all the same.
            drop(std::io::stderr().flush());
            let mut typed = String::new();
            std::io::stdin().read_line(&mut typed).map_err(|e| CliError::Ended(format!("nothing was typed: {e}")))?;
            typed.trim().to_owned()
        }
        None => {
            return Err(CliError::Words(format!("{command}: say `--confirm {name}`: nobody is here to type it")));
        }
    };
    if said == name { Ok(said) } else { Err(CliError::Words(format!("`{said}` is not `{name}`: nothing was changed"))) }
}
