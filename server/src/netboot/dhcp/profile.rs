//! What each kind of boot firmware is told.
//!
//! | firmware | told by | loads | by |
//! |---|---|---|---|
//! | BIOS PXE ROM | architecture 0 | `undionly.kpxe` | TFTP |
//! | x86-64 UEFI | 7, 9 | `snponly.efi` | TFTP |
//! | arm64 UEFI | 11 | `arm64/snponly.efi` | TFTP |
//! | x86-64, arm64 UEFI HTTP boot | 16, 19 and option 60 `HTTPClient` | the same by URL | HTTP |
//! | iPXE | option 77 `iPXE` or 175 | `/boot.ipxe` | HTTP |
//!
//! An iPXE that lists its features without HTTP is served as the firmware it runs on, and so loads ours.

use std::fmt;
use std::net::Ipv4Addr;

use super::packet::Request;

/// Instruction set of a UEFI machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arch {
    /// x86-64.
    X64,
    /// 64-bit ARM.
    Arm64,
}

/// Who asks, as far as the reply depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Client {
    /// No boot firmware: an operating system, or a device.
    Plain,
    /// iPXE with HTTP.
    Ipxe,
    /// PXE ROM of a PC BIOS.
    BiosPxe,
    /// PXE of UEFI.
    UefiPxe(Arch),
    /// HTTP boot of UEFI.
    UefiHttp(Arch),
    /// Boot firmware that no loader is built for; the architecture of option 93.
    Unsupported(u16),
}

impl Client {
    /// Tells clients apart.
    #[must_use]
    pub fn of(request: &Request) -> Self {
        if request.ipxe.is_some_and(|ipxe| ipxe.http) {
            return Self::Ipxe;
        }
        let class = request.vendor_class.as_deref().unwrap_or_default();
        let (pxe, http) = (class.starts_with("PXEClient"), class.starts_with("HTTPClient"));
        if !pxe && !http && request.ipxe.is_none() && request.architectures.is_empty() {
            return Self::Plain;
        }
        let known = |code: &u16| Self::of_architecture(*code, http);
        let declared = request.architectures.iter().find_map(known);
        // Before RFC 4578 the architecture was only in the class identifier: `PXEClient:Arch:00000:UNDI:002001`.
        let spelled = || class.split(':').nth(2).and_then(|digits| digits.parse::<u16>().ok());
        match (declared, request.architectures.first().copied().or_else(spelled)) {
            (Some(client), _) => client,
            (None, Some(code)) => Self::of_architecture(code, http).unwrap_or(Self::Unsupported(code)),
            (None, None) => Self::BiosPxe,
        }
    }

    fn of_architecture(code: u16, http: bool) -> Option<Self> {
        match code {
            0 if !http => Some(Self::BiosPxe),
            7 | 9 if http => Some(Self::UefiHttp(Arch::X64)),
            11 if http => Some(Self::UefiHttp(Arch::Arm64)),
            7 | 9 => Some(Self::UefiPxe(Arch::X64)),
            11 => Some(Self::UefiPxe(Arch::Arm64)),
            16 => Some(Self::UefiHttp(Arch::X64)),
            19 => Some(Self::UefiHttp(Arch::Arm64)),
            _ => None,
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain => f.write_str("no boot firmware"),
            Self::Ipxe => f.write_str("iPXE"),
            Self::BiosPxe => f.write_str("BIOS PXE"),
            Self::UefiPxe(Arch::X64) => f.write_str("x86-64 UEFI PXE"),
            Self::UefiPxe(Arch::Arm64) => f.write_str("arm64 UEFI PXE"),
            Self::UefiHttp(Arch::X64) => f.write_str("x86-64 UEFI HTTP boot"),
            Self::UefiHttp(Arch::Arm64) => f.write_str("arm64 UEFI HTTP boot"),
            Self::Unsupported(code) => write!(f, "unsupported architecture {code}"),
        }
    }
}

/// The files of iPXE that clients load.
pub const FILES: [&str; 3] = ["undionly.kpxe", "snponly.efi", "arm64/snponly.efi"];

/// The file of iPXE that a client loads; none for clients that load none.
#[must_use]
pub fn file_of(client: Client) -> Option<&'static str> {
    match client {
        Client::Plain | Client::Ipxe | Client::Unsupported(_) => None,
        Client::BiosPxe => Some("undionly.kpxe"),
        Client::UefiPxe(Arch::X64) | Client::UefiHttp(Arch::X64) => Some("snponly.efi"),
        Client::UefiPxe(Arch::Arm64) | Client::UefiHttp(Arch::Arm64) => Some("arm64/snponly.efi"),
    }
}

/// The message that carries the boot file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// With the address, from the DHCP server itself.
    Lease,
    /// A ProxyDHCP offer, from port 67.
    ProxyOffer,
    /// A boot server's acknowledgement, from port 4011.
    BootServer,
}

/// Boot part of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// `siaddr` and option 66.
    pub server: Ipv4Addr,
    /// `file` and option 67: a TFTP name or a URL.
    pub file: String,
    /// End option 67 with a NUL, as old ROMs read it.
    pub nul_terminated: bool,
    /// Option 60.
    pub vendor_class: Option<&'static str>,
    /// Option 43 sub-option 6 = 8: load the file that was named, ask no boot server (PXE 2.1, table 2-1).
    pub no_discovery: bool,
    /// Option 175 sub-option 176 = 1: iPXE does not wait for a ProxyDHCP offer.
    pub no_proxy_dhcp: bool,
}

/// The boot part for a client; none for clients that boot nothing from us.
#[must_use]
pub fn boot(client: Client, carrier: Carrier, server: Ipv4Addr, http_port: u16) -> Option<Boot> {
    let file = match (client, file_of(client)) {
        (Client::Ipxe, _) => format!("http://{server}:{http_port}/boot.ipxe"),
        (Client::UefiHttp(_), Some(file)) => format!("http://{server}:{http_port}/ipxe/{file}"),
        (_, Some(file)) => file.to_owned(),
        (_, None) => return None,
    };
    let http = matches!(client, Client::UefiHttp(_));
    // A full DHCP server that says PXEClient sends UEFI to port 4011 for the file it has already been told.
    let vendor_class = match (http, carrier) {
        (true, _) => Some("HTTPClient"),
        (false, Carrier::Lease) => None,
        (false, Carrier::ProxyOffer | Carrier::BootServer) => Some("PXEClient"),
    };
    Some(Boot {
        server,
        file,
        nul_terminated: client == Client::BiosPxe,
        vendor_class,
        // UEFI firmware drops an offer that forbids discovery, or asks 4011 when there is no option 43 at all; BIOS ROMs
        // load at once.
        no_discovery: client == Client::BiosPxe && carrier != Carrier::Lease,
        no_proxy_dhcp: client == Client::Ipxe && carrier == Carrier::Lease,
    })
}

#[cfg(test)]
mod tests;
