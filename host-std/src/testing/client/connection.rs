//! One connection to a server: negotiation, in the order of QEMU's `vhost_dev_init`, and messages with a deadline.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost::VhostBackend as _;
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{
    Frontend, VhostUserFrontend as _, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};

use super::error::ClientError;
use super::notices::{Changes, Notices};
use super::options::Options;
use super::watchdog::Watchdog;

/// A connection, negotiated. It closes when this is dropped.
pub(super) struct Connection {
    frontend: Frontend,
    socket: UnixStream,
    watchdog: Watchdog,
    agreed: Agreed,
}

struct Agreed {
    offered: u64,
    protocol: VhostUserProtocolFeatures,
    _notices: Option<Notices>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("protocol", &self.agreed.protocol).finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn open(path: &Path, options: &Options, changes: &Arc<Changes>) -> Result<Self, ClientError> {
        let stream = connect(path, options.timeout)?;
        let socket = stream.try_clone().map_err(ClientError::system("dup"))?;
        let watchdog = Watchdog::new(&socket, options.timeout)?;
        let mut frontend = Frontend::from_stream(stream, u64::from(options.queues));
        let agreed = watchdog.watch(|| negotiate(&mut frontend, options, changes))?;
        Ok(Self { frontend, socket, watchdog, agreed })
    }

    /// Sends messages, and gives up when the answers take too long.
    pub(super) fn message<R>(
        &mut self,
        message: impl FnOnce(&mut Frontend) -> Result<R, vhost::Error>,
    ) -> Result<R, ClientError> {
        let frontend = &mut self.frontend;
        self.watchdog.watch(|| Ok(message(frontend)?))
    }

    /// The features that the server offers.
    pub(super) fn offered(&self) -> u64 {
        self.agreed.offered
    }

    /// Whether a protocol feature is in use.
    pub(super) fn has(&self, feature: VhostUserProtocolFeatures) -> bool {
        self.agreed.protocol.contains(feature)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn negotiate(
    frontend: &mut Frontend,
    options: &Options,
    changes: &Arc<Changes>,
) -> Result<Agreed, ClientError> {
    let offered = frontend.get_features()?;
    if offered & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
        return Err(ClientError::NotOffered("protocol features"));
    }
    let protocol = frontend.get_protocol_features()? & options.protocol;
    frontend.set_protocol_features(protocol)?;
    let has = |feature| protocol.contains(feature);
    if has(VhostUserProtocolFeatures::REPLY_ACK) {
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    if has(VhostUserProtocolFeatures::MQ) {
        if frontend.get_queue_num()? < u64::from(options.queues) {
            return Err(ClientError::NotOffered("that many queues"));
        }
    } else if options.queues > 1 {
        return Err(ClientError::NotOffered("more than one queue"));
    }
    if has(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS) && frontend.get_max_mem_slots()? < 2 {
        return Err(ClientError::NotOffered("two memory regions"));
    }
    let mut notices = None;
    if has(VhostUserProtocolFeatures::BACKEND_REQ) {
        let channel = Notices::new(Arc::clone(changes), has(VhostUserProtocolFeatures::REPLY_ACK))?;
        let end: RawFd = channel.server_end();
        frontend.set_backend_request_fd(&end)?;
        notices = Some(channel);
    }
    frontend.set_owner()?;
    Ok(Agreed { offered, protocol, _notices: notices })
}

/// Connects, as often as it takes: a server that is being started does not listen yet.
fn connect(path: &Path, timeout: Duration) -> Result<UnixStream, ClientError> {
    let deadline = Instant::now() + timeout;
    loop {
        match UnixStream::connect(path) {
            Ok(socket) => return Ok(socket),
            Err(source) if Instant::now() >= deadline => {
                return Err(ClientError::Connect { path: path.to_owned(), source });
            }
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}
