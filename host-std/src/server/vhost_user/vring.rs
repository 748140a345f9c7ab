//! State of a ring as the client has set it up so far.

use crate::server::client_fd::ClientFd;

/// Where a ring is, in the client's own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) descriptors: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
}

/// A ring, as far as the client has set it up.
#[derive(Debug, Default)]
pub(super) struct Vring {
    pub(super) size: Option<u16>,
    pub(super) addresses: Option<Addresses>,
    /// The next available entry, where no in-flight region says better.
    pub(super) base: u16,
    pub(super) enabled: bool,
    /// SET_VRING_KICK has come since the ring was stopped; without a descriptor the ring is to be polled.
    kick: Option<Option<ClientFd>>,
    /// Its thread works on it.
    pub(super) started: bool,
}

impl Vring {
    /// Whether all is there that it needs to run.
    pub(super) const fn is_ready(&self) -> bool {
        self.enabled && self.size.is_some() && self.addresses.is_some() && self.kick.is_some()
    }

    pub(super) fn set_kick(&mut self, kick: Option<ClientFd>) {
        self.kick = Some(kick);
    }

    pub(super) fn take_kick(&mut self) -> Option<ClientFd> {
        self.kick.take().flatten()
    }

    pub(super) fn forget_kick(&mut self) {
        self.kick = None;
    }
}
