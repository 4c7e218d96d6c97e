//! The table of firmware and what each is told.

use super::super::packet::option;
use super::super::testing::{Message, SERVER, mac};
use super::*;

fn firmware(class: &str, architectures: &[u16]) -> Message {
    let message = Message::discover(mac(1));
    let message = if class.is_empty() { message } else { message.with(option::VENDOR_CLASS, class.as_bytes()) };
    let codes: Vec<u8> = architectures.iter().flat_map(|code| code.to_be_bytes()).collect();
    if codes.is_empty() { message } else { message.with(option::ARCHITECTURE, codes) }
}

#[test]
fn clients_are_told_apart() {
    let ipxe = |message: Message| message.with(option::USER_CLASS, *b"iPXE");
    let ipxe_without_http = |message: Message| message.with(option::IPXE, [0xb1, 1, 1, 0x10, 1, 2]);
    let cases = [
        (firmware("", &[]), Client::Plain),
        (firmware("MSFT 5.0", &[]), Client::Plain),
        (firmware("PXEClient", &[]), Client::BiosPxe),
        (firmware("PXEClient:Arch:00000:UNDI:002001", &[]), Client::BiosPxe),
        (firmware("PXEClient:Arch:00000:UNDI:002001", &[0]), Client::BiosPxe),
        (firmware("PXEClient:Arch:00006:UNDI:003000", &[6]), Client::Unsupported(6)),
        (firmware("PXEClient:Arch:00007:UNDI:003016", &[]), Client::UefiPxe(Arch::X64)),
        (firmware("PXEClient:Arch:00007:UNDI:003016", &[7]), Client::UefiPxe(Arch::X64)),
        (firmware("PXEClient:Arch:00009:UNDI:003016", &[9]), Client::UefiPxe(Arch::X64)),
        (firmware("PXEClient:Arch:00011:UNDI:003000", &[11]), Client::UefiPxe(Arch::Arm64)),
        // Several architectures: the first that we have a loader for.
        (firmware("PXEClient", &[6, 7]), Client::UefiPxe(Arch::X64)),
        (firmware("PXEClient", &[7, 9]), Client::UefiPxe(Arch::X64)),
        (firmware("HTTPClient:Arch:00016:UNDI:003001", &[16]), Client::UefiHttp(Arch::X64)),
        (firmware("HTTPClient:Arch:00019:UNDI:003001", &[19]), Client::UefiHttp(Arch::Arm64)),
        (firmware("HTTPClient", &[7]), Client::UefiHttp(Arch::X64)),
        (firmware("HTTPClient:Arch:00015:UNDI:003001", &[15]), Client::Unsupported(15)),
        (ipxe(firmware("PXEClient:Arch:00000:UNDI:002001", &[0])), Client::Ipxe),
        (ipxe(firmware("PXEClient:Arch:00007:UNDI:003010", &[7])), Client::Ipxe),
        (ipxe(firmware("PXEClient:Arch:00011:UNDI:003010", &[11])), Client::Ipxe),
        (ipxe_without_http(firmware("PXEClient:Arch:00000:UNDI:002001", &[0])), Client::BiosPxe),
        (ipxe_without_http(firmware("PXEClient:Arch:00007:UNDI:003010", &[7])), Client::UefiPxe(Arch::X64)),
    ];
    for (message, client) in cases {
        assert_eq!(Client::of(&message.decoded()), client, "{:?}", message.options);
    }
}

#[test]
fn each_firmware_gets_its_profile() {
    const X64: Arch = Arch::X64;
    const ARM: Arch = Arch::Arm64;
    const PXE: Option<&str> = Some("PXEClient");
    const HTTP: Option<&str> = Some("HTTPClient");
    use Carrier::{BootServer, Lease, ProxyOffer};
    // client, carrier, file, option 60, NUL at the end of 67, 43.6 = 8, 175.176 = 1
    #[rustfmt::skip]
    let cases = [
        (Client::BiosPxe, Lease, "undionly.kpxe", None, true, false, false),
        (Client::BiosPxe, ProxyOffer, "undionly.kpxe", PXE, true, true, false),
        (Client::BiosPxe, BootServer, "undionly.kpxe", PXE, true, true, false),
        (Client::UefiPxe(X64), Lease, "snponly.efi", None, false, false, false),
        (Client::UefiPxe(X64), ProxyOffer, "snponly.efi", PXE, false, false, false),
        (Client::UefiPxe(X64), BootServer, "snponly.efi", PXE, false, false, false),
        (Client::UefiPxe(ARM), Lease, "arm64/snponly.efi", None, false, false, false),
        (Client::UefiPxe(ARM), ProxyOffer, "arm64/snponly.efi", PXE, false, false, false),
        (Client::UefiHttp(X64), Lease, "http://192.0.2.1:8080/ipxe/snponly.efi", HTTP, false, false, false),
        (Client::UefiHttp(X64), ProxyOffer, "http://192.0.2.1:8080/ipxe/snponly.efi", HTTP, false, false, false),
        (Client::UefiHttp(ARM), Lease, "http://192.0.2.1:8080/ipxe/arm64/snponly.efi", HTTP, false, false, false),
        (Client::Ipxe, Lease, "http://192.0.2.1:8080/boot.ipxe", None, false, false, true),
        (Client::Ipxe, ProxyOffer, "http://192.0.2.1:8080/boot.ipxe", PXE, false, false, false),
    ];
    for (client, carrier, file, vendor_class, nul_terminated, no_discovery, no_proxy_dhcp) in cases {
        let file = file.to_owned();
        let expected = Boot { server: SERVER, file, nul_terminated, vendor_class, no_discovery, no_proxy_dhcp };
        assert_eq!(boot(client, carrier, SERVER, 8080), Some(expected), "{client}, {carrier:?}");
    }
    assert_eq!(boot(Client::Plain, Lease, SERVER, 8080), None);
    assert_eq!(boot(Client::Unsupported(6), ProxyOffer, SERVER, 8080), None);
}
