//! Where scrapes come in: loopback, or a unix socket.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use anyhow::Context as _;

use host_std::confine::permissions::SocketAccess;
use host_std::serve::listen::{SocketFile, bind};

use crate::cli::ListenArg;

/// How long one read or write of a connection may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) enum Listener {
    Tcp(TcpListener),
    /// With what removes it at the end.
    Unix {
        listener: UnixListener,
        _file: SocketFile,
    },
}

/// A connection of either kind.
pub(super) trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

pub(super) type Connection = Box<dyn Stream>;

impl Listener {
    pub(super) fn bind(address: &ListenArg) -> anyhow::Result<Self> {
        let listener = match address {
            ListenArg::Tcp(address) => {
                let listener = TcpListener::bind(address).with_context(|| {
                    format!("--listen {address}: cannot listen; give another port, or unix:PATH")
                })?;
                Self::Tcp(listener)
            }
            ListenArg::Unix(path) => {
                let (listener, _file) = bind(path, &SocketAccess::default(), "listen")?;
                Self::Unix { listener, _file }
            }
        };
        match &listener {
            Self::Tcp(listener) => listener.set_nonblocking(true),
            Self::Unix { listener, .. } => listener.set_nonblocking(true),
        }
        .context("cannot make the socket non-blocking")?;
        Ok(listener)
    }

    /// What to give to Prometheus.
    pub(super) fn name(&self) -> io::Result<String> {
        Ok(match self {
            Self::Tcp(listener) => format!("http://{}/metrics", listener.local_addr()?),
            Self::Unix { listener, .. } => {
                let address = listener.local_addr()?;
                format!("unix:{}", address.as_pathname().unwrap_or_else(|| "".as_ref()).display())
            }
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix { listener, .. } => listener.as_fd(),
        }
    }

    pub(super) fn accept(&self) -> io::Result<Connection> {
        let timeout = Some(STEP_TIMEOUT);
        match self {
            Self::Tcp(listener) => {
                let stream: TcpStream = listener.accept()?.0;
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)?;
                Ok(Box::new(stream))
            }
            Self::Unix { listener, .. } => {
                let stream: UnixStream = listener.accept()?.0;
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)?;
                Ok(Box::new(stream))
            }
        }
    }
}
