//! A TFTP fetch as UEFI firmware does it: blocks of 1468 bytes in lock step.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use nkd_server::netboot::tftp::codec::{self, Direction, Mode, Options, Packet, Request};
use tokio::net::UdpSocket;

const BLOCK_SIZE: u16 = 1468;
/// Silence after which the last packet is sent again, and how often in all.
const SILENCE: Duration = Duration::from_secs(1);
const REPEATS: u32 = 8;

/// Fetches the file from port 69; gives its size and the number of packets that were sent again.
pub async fn fetch(own: Ipv4Addr, server: IpAddr, file: &str) -> Result<(usize, u32)> {
    let socket = UdpSocket::bind((own, 0)).await?;
    let asked = Options { block_size: Some(BLOCK_SIZE), ..Options::default() };
    let request = Request { direction: Direction::Read, name: file.as_bytes(), mode: Mode::Octet, options: asked };
    let mut last = Vec::new();
    codec::encode(&Packet::Request(request), &mut last);
    socket.send_to(&last, (server, 69)).await?;
    let (mut expected, mut size, mut repeats, mut connected) = (1_u16, 0, 0, false);
    let mut buffer = [0; 1500];
    loop {
        let Ok(received) = tokio::time::timeout(SILENCE, socket.recv_from(&mut buffer)).await else {
            repeats += 1;
            ensure!(repeats <= REPEATS, "silence at block {expected}");
            match connected {
                true => socket.send(&last).await?,
                false => socket.send_to(&last, (server, 69)).await?,
            };
            continue;
        };
        let (length, from) = received?;
        if !connected {
            socket.connect(from).await?;
            connected = true;
        }
        let acknowledged = match codec::parse(&buffer[..length])? {
            Packet::OptionAcknowledgement(options) => {
                ensure!(options.block_size == Some(BLOCK_SIZE), "another block size than {BLOCK_SIZE}");
                0
            }
            Packet::Data { block, payload } if block == expected => {
                size += payload.len();
                expected += 1;
                if payload.len() < usize::from(BLOCK_SIZE) {
                    socket.send(&acknowledgement(block)).await?;
                    return Ok((size, repeats));
                }
                block
            }
            // One that was sent again: the acknowledgement of it is on its way.
            Packet::Data { .. } => continue,
            Packet::Error { code, text } => bail!("error {code}: {text}"),
            other => bail!("unexpected packet {other:?}"),
        };
        last = acknowledgement(acknowledged);
        socket.send(&last).await?;
    }
}

fn acknowledgement(block: u16) -> Vec<u8> {
    let mut out = Vec::new();
    codec::encode(&Packet::Acknowledgement { block }, &mut out);
    out
}
