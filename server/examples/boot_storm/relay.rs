//! DHCP through a relay (RFC 2131): one socket for all machines, who are told apart by their transaction ids.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use dhcproto::v4::{self, Decodable, DhcpOption, Encodable, MessageType, OptionCode};
use nkd_api::MacAddr;
use tokio::net::UdpSocket;
use tokio::sync::oneshot;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// PXE firmware of a UEFI machine.
    Firmware,
    /// iPXE, which can HTTP.
    Ipxe,
}

/// What a machine was given.
pub struct Lease {
    pub address: Ipv4Addr,
    pub boot_file: String,
}

pub struct Relay {
    socket: UdpSocket,
    own: Ipv4Addr,
    waiting: Mutex<HashMap<u32, oneshot::Sender<v4::Message>>>,
}

impl Relay {
    /// Takes port 67 of `own` and hands out the answers of `server`.
    pub async fn start(own: Ipv4Addr, server: Ipv4Addr) -> Result<Arc<Self>> {
        let socket = UdpSocket::bind((own, 67)).await?;
        socket.connect((server, 67)).await?;
        let relay = Arc::new(Self { socket, own, waiting: Mutex::default() });
        let reader = Arc::clone(&relay);
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            loop {
                let Ok(length) = reader.socket.recv(&mut buffer).await else { continue };
                let Ok(message) = v4::Message::decode(&mut v4::Decoder::new(&buffer[..length])) else { continue };
                if let Some(waiting) = reader.lock().remove(&message.xid()) {
                    drop(waiting.send(message));
                }
            }
        });
        Ok(relay)
    }

    /// One discovery and one request. The caller limits its time; `xid` is used with its successor.
    pub async fn lease(&self, mac: MacAddr, client: Client, xid: u32) -> Result<Lease> {
        let offer = self.ask(&self.message(mac, client, xid, MessageType::Discover)).await?;
        ensure!(offer.opts().msg_type() == Some(MessageType::Offer), "not an offer");
        let Some(DhcpOption::ServerIdentifier(server)) = offer.opts().get(OptionCode::ServerIdentifier) else {
            bail!("an offer of nobody");
        };
        let mut request = self.message(mac, client, xid + 1, MessageType::Request);
        request.opts_mut().insert(DhcpOption::RequestedIpAddress(offer.yiaddr()));
        request.opts_mut().insert(DhcpOption::ServerIdentifier(*server));
        let answer = self.ask(&request).await?;
        ensure!(answer.opts().msg_type() == Some(MessageType::Ack), "refused: {:?}", answer.opts().msg_type());
        ensure!(answer.yiaddr() == offer.yiaddr(), "another address than the offered one");
        let option = match answer.opts().get(OptionCode::BootfileName) {
            Some(DhcpOption::BootfileName(name)) => Some(name.clone()),
            _ => answer.fname().map(<[u8]>::to_vec),
        };
        let boot_file = String::from_utf8(option.context("no boot file")?)?.trim_end_matches('\0').to_owned();
        Ok(Lease { address: answer.yiaddr(), boot_file })
    }

    fn message(&self, mac: MacAddr, client: Client, xid: u32, kind: MessageType) -> v4::Message {
        let mut message = v4::Message::default();
        message.set_xid(xid).set_chaddr(&mac.0).set_giaddr(self.own).set_hops(1);
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ClassIdentifier(b"PXEClient:Arch:00007:UNDI:003016".to_vec()));
        options.insert(DhcpOption::ClientSystemArchitecture(v4::Architecture::X64));
        options.insert(DhcpOption::MaxMessageSize(1472));
        options.insert(DhcpOption::ParameterRequestList(vec![
            OptionCode::SubnetMask,
            OptionCode::Router,
            OptionCode::DomainNameServer,
            OptionCode::TFTPServerName,
            OptionCode::BootfileName,
        ]));
        if client == Client::Ipxe {
            options.insert(DhcpOption::UserClass(b"iPXE".to_vec()));
            // It can HTTP (19) and boot EFI images (36).
            let features = vec![19, 1, 1, 36, 1, 1];
            options.insert(DhcpOption::Unknown(v4::UnknownOption::new(OptionCode::Unknown(175), features)));
        }
        message
    }

    async fn ask(&self, message: &v4::Message) -> Result<v4::Message> {
        let (sender, answer) = oneshot::channel();
        self.lock().insert(message.xid(), sender);
        self.socket.send(&message.to_vec()?).await?;
        Ok(answer.await?)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u32, oneshot::Sender<v4::Message>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
