//! Takes connections and passes their bytes on.
#![expect(clippy::disallowed_methods, reason = "listens and connects")]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{BalanceError, Shared};

/// Bytes of a connection on their way, in each direction.
const BUFFER: usize = 8 * 1024;
/// Wait after a connection could not be taken.
const PAUSE: Duration = Duration::from_millis(100);

/// Listens on the first address, and on those of the others that this machine has.
pub(super) async fn listen(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, BalanceError> {
    let mut listeners = Vec::new();
    for (index, &address) in addresses.iter().enumerate() {
        match TcpListener::bind(address).await {
            Ok(listener) => listeners.push(listener),
            // No IPv6 on this machine.
            Err(error) if index > 0 && matches!(error.kind(), ErrorKind::AddrNotAvailable | ErrorKind::Unsupported) => {
            }
            Err(error) if index > 0 && error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => {}
            Err(source) => return Err(BalanceError::Listen { address, source }),
        }
    }
    Ok(listeners)
}

/// Takes connections for ever.
pub(super) async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // They end with this future.
    let mut connections = JoinSet::new();
    // Never closed.
    while let Ok(permit) = Arc::clone(&shared.room).acquire_owned().await {
        match listener.accept().await {
            Ok((client, _)) => {
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    serve(client, &shared).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be taken");
                sleep(PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// One connection, to the first backend that takes it; closed when there is none.
async fn serve(mut client: TcpStream, shared: &Shared) {
    let turn = shared.turn.fetch_add(1, Ordering::Relaxed);
    let order = shared.board.borrow().order(turn);
    for address in order {
        let Ok(Ok(mut server)) = timeout(shared.pace.connect, TcpStream::connect(address)).await else { continue };
        // Only slower without it.
        let _ = client.set_nodelay(true).and_then(|()| server.set_nodelay(true));
        let mut board = shared.board.subscribe();
        tokio::select! {
            _ = copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER) => {}
            _ = board.wait_for(|board| board.is_to_leave(address)) => {
                tracing::info!("a connection to {address} is closed: it goes elsewhere");
            }
        }
        return;
    }
}
