//! Host names to addresses.
//!
//! A static binary must not call the C library's resolver: it would load the host's name service modules into itself.
//! So a literal address is taken as it is, and a name is asked of `getent`, which runs in the host's own library with
//! whatever `/etc/nsswitch.conf` says.
#![expect(clippy::disallowed_methods, reason = "runs getent")]

use std::io;
use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// Addresses of `host`, best first.
///
/// # Errors
/// When the name is not known, or `getent` is missing or does not answer in 10 seconds.
pub async fn resolve(host: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    // Never an option, never a path.
    if host.starts_with('-') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("`{host}` is not a host name")));
    }
    let run = Command::new("getent").args(["ahosts", host]).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(Duration::from_secs(10), run)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer about the name {host}")))??;
    let addresses = parse(&String::from_utf8_lossy(&output.stdout));
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("the name {host} is not known")));
    }
    Ok(addresses)
}

/// The addresses in what `getent ahosts` prints, each once.
fn parse(text: &str) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for address in text.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_once_and_in_order() {
        let text = "2001:db8::1     STREAM boot.example\n2001:db8::1     DGRAM  \n192.0.2.1       STREAM \nnonsense\n";
        assert_eq!(parse(text), ["2001:db8::1".parse::<IpAddr>().unwrap(), "192.0.2.1".parse().unwrap()]);
    }

    #[tokio::test]
    async fn literals_names_and_options_are_told_apart() {
        assert_eq!(resolve("2001:db8::1").await.unwrap(), ["2001:db8::1".parse::<IpAddr>().unwrap()]);
        assert!(resolve("localhost").await.unwrap().iter().all(IpAddr::is_loopback));
        assert!(resolve("--help").await.is_err());
        assert!(resolve("no-such-name.invalid").await.is_err());
    }
}
