//! The device's interrupt lines, as the client's eventfds.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use blk_core::bus::IrqChange;
use blk_core::pci::{Capability, Function};
use rustix::io::Errno;

use super::moderation::{Moderation, Requests};
use super::protocol::{IrqFlags, IrqSet};
use crate::server::client_fd::ClientFd;
use crate::server::stats::Counter;

/// Kinds of interrupts of a PCI device (`linux/vfio.h`, VFIO_PCI_INTX_IRQ_INDEX and so on). The error and the request
/// interrupt are not there.
pub(super) const KINDS: u32 = 3;
const INTX: u32 = 0;
const MSI: u32 = 1;
const MSIX: u32 = 2;

// VFIO_IRQ_INFO_EVENTFD, _MASKABLE, _AUTOMASKED, _NORESIZE.
const INTX_FLAGS: u32 = 1 | 2 | 4;
const MESSAGE_FLAGS: u32 = 1 | 8;

/// The interrupts of a device and where they go.
#[derive(Debug)]
pub(super) struct Irqs {
    intx: Option<Intx>,
    msi: Messages,
    msix: Messages,
    /// A message may be there to signal.
    due: bool,
    moderation: Moderation,
    /// Interrupts signalled so far.
    signalled: Arc<Counter>,
}

/// The pin. A client takes it for asserted from our signal until the guest accesses a register, and then unmasks; so it
/// masks itself with each signal, as VFIO's does.
#[derive(Debug, Default)]
struct Intx {
    fd: Option<ClientFd>,
    level: bool,
    /// Signalled, and not unmasked since.
    outstanding: bool,
    /// Masked by the client.
    masked: bool,
}

/// Messages: MSI, or MSI-X.
#[derive(Debug)]
struct Messages(Vec<Message>);

#[derive(Debug, Default)]
struct Message {
    fd: Option<ClientFd>,
    /// Raised while there was nowhere to signal it: the client is setting it up.
    pending: bool,
}

impl Irqs {
    /// Those that a function has.
    pub(super) fn new(function: &Function, signalled: Arc<Counter>) -> Self {
        let capabilities = function.capabilities;
        let count =
            |of: fn(&Capability) -> Option<u32>| capabilities.iter().flatten().find_map(of).unwrap_or(0);
        let msi = count(|capability| match *capability {
            Capability::Msi { vectors_log2 } => Some(1 << vectors_log2.min(5)),
            _ => None,
        });
        let msix = count(|capability| match *capability {
            Capability::Msix { vectors, .. } => Some(vectors.into()),
            _ => None,
        });
        let intx = (function.identity.interrupt_pin != 0).then(Intx::default);
        Self {
            intx,
            msi: Messages::new(msi),
            msix: Messages::new(msix),
            due: false,
            moderation: Moderation::default(),
            signalled,
        }
    }

    /// Flags and number of a kind.
    pub(super) fn info(&self, index: u32) -> Result<(u32, u32), Errno> {
        match index {
            INTX => Ok((INTX_FLAGS, self.intx.is_some().into())),
            MSI => Ok((MESSAGE_FLAGS, self.msi.0.len() as u32)),
            MSIX => Ok((MESSAGE_FLAGS, self.msix.0.len() as u32)),
            _ => Err(Errno::INVAL),
        }
    }

    /// Lets go of all eventfds and masks, for a client that has gone.
    pub(super) fn release(&mut self) {
        if let Some(intx) = &mut self.intx {
            *intx = Intx { level: intx.level, ..Intx::default() };
        }
        for message in self.msi.0.iter_mut().chain(&mut self.msix.0) {
            *message = Message::default();
        }
        (self.due, self.moderation) = (false, Moderation::default());
    }

    /// Passes on what the device reported: a level at once, messages by [`signal`](Self::signal).
    #[inline]
    pub(super) fn change(&mut self, irq: IrqChange) {
        if irq != IrqChange::NONE {
            self.pass_on(irq);
        }
    }

    fn pass_on(&mut self, irq: IrqChange) {
        if let (Some(intx), Some(level)) = (&mut self.intx, irq.line(0)) {
            self.signalled.add(u64::from(intx.set(level)));
        }
        let due = (irq.changed & irq.level) >> 1;
        for (vector, message) in self.messages().0.iter_mut().enumerate().take(32) {
            message.pending |= due >> vector & 1 != 0;
        }
        self.due |= due != 0;
    }

    fn messages(&mut self) -> &mut Messages {
        if self.msix.in_use() { &mut self.msix } else { &mut self.msi }
    }

    /// Signals the messages that are due, if they need not wait for more requests, or when the guest has been quiet. Returns
    /// whether they still wait.
    #[inline]
    pub(super) fn signal(&mut self, requests: Requests, quiet: bool) -> bool {
        if self.due && (quiet || !self.moderation.waits(requests, Instant::now)) {
            self.due = false;
            self.moderation.signalled();
            let signalled = self.messages().0.iter_mut().filter_map(|message| message.signal().then_some(1));
            let signalled = signalled.sum();
            self.signalled.add(signalled);
        }
        self.due
    }

    /// The guest has read a register.
    #[inline]
    pub(super) fn register_read(&mut self, requests: Requests) {
        self.moderation.register_read(requests);
    }

    /// DEVICE_SET_IRQS.
    ///
    /// # Errors
    /// INVAL for a range, a combination of flags or a number of descriptors that cannot be.
    pub(super) fn set(
        &mut self,
        set: &IrqSet,
        flags: IrqFlags,
        data: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<(), Errno> {
        let (_, there) = self.info(set.index)?;
        let end = set.start.checked_add(set.count).filter(|end| *end <= there).ok_or(Errno::INVAL)?;
        let range = set.start as usize..end as usize;
        let action = flags & (IrqFlags::MASK | IrqFlags::UNMASK | IrqFlags::TRIGGER);
        if action.bits().count_ones() != 1 {
            return Err(Errno::INVAL);
        }
        match flags - action {
            IrqFlags::NONE if data.is_empty() && fds.is_empty() => {
                if action == IrqFlags::TRIGGER && set.count == 0 && set.start == 0 {
                    self.assign(set.index, 0..there as usize, Vec::new());
                    return Ok(());
                }
                self.act(set.index, action, range)
            }
            IrqFlags::BOOL if data.len() == range.len() && fds.is_empty() => {
                let chosen = range.zip(data).filter(|(_, on)| **on != 0);
                self.act(set.index, action, chosen.map(|(at, _)| at))
            }
            IrqFlags::EVENTFD if data.is_empty() && (fds.is_empty() || fds.len() == range.len()) => {
                // Nobody masks here but the client, who needs no telling.
                if action != IrqFlags::TRIGGER || range.is_empty() {
                    return Err(Errno::INVAL);
                }
                let fds = fds.into_iter().map(ClientFd::new).collect::<Result<Vec<_>, _>>();
                let fds = fds.map_err(|why| {
                    tracing::warn!("an interrupt of the client is refused: {why}");
                    Errno::INVAL
                })?;
                self.assign(set.index, range, fds);
                Ok(())
            }
            _ => Err(Errno::INVAL),
        }
    }

    /// Gives a range its eventfds, or none.
    fn assign(&mut self, index: u32, range: std::ops::Range<usize>, fds: Vec<ClientFd>) {
        let mut fds = fds.into_iter();
        let messages = match index {
            MSI => &mut self.msi,
            MSIX => &mut self.msix,
            _ => {
                if let Some(intx) = self.intx.as_mut().filter(|_| !range.is_empty()) {
                    *intx = Intx { fd: fds.next(), level: intx.level, ..Intx::default() };
                    self.signalled.add(u64::from(intx.signal()));
                }
                return;
            }
        };
        for message in messages.0.get_mut(range).unwrap_or_default() {
            message.fd = fds.next();
            self.signalled.add(u64::from(message.signal()));
        }
    }

    fn act(&mut self, index: u32, action: IrqFlags, range: impl Iterator<Item = usize>) -> Result<(), Errno> {
        for at in range {
            match (index, &mut self.intx) {
                (INTX, Some(intx)) => match action {
                    IrqFlags::MASK => intx.masked = true,
                    IrqFlags::UNMASK => {
                        (intx.masked, intx.outstanding) = (false, false);
                        self.signalled.add(u64::from(intx.signal()));
                    }
                    IrqFlags::TRIGGER => {
                        raise(intx.fd.as_ref());
                    }
                    _ => return Err(Errno::INVAL),
                },
                _ if action == IrqFlags::TRIGGER => {
                    let messages = if index == MSI { &self.msi } else { &self.msix };
                    raise(messages.0.get(at).and_then(|message| message.fd.as_ref()));
                }
                // A message is masked in its table, which the client has.
                _ => return Err(Errno::INVAL),
            }
        }
        Ok(())
    }
}

impl Intx {
    /// The level has changed. Returns whether that was signalled.
    fn set(&mut self, level: bool) -> bool {
        self.level = level;
        if !level && self.outstanding {
            // What the client has not seen is taken back. If it has, it unmasks later, which does no harm.
            if let Some(fd) = &self.fd {
                fd.take();
            }
            self.outstanding = false;
        }
        self.signal()
    }

    /// Signals a level that is high and that the client does not know of.
    fn signal(&mut self) -> bool {
        if !self.level || self.masked || self.outstanding || self.fd.is_none() {
            return false;
        }
        self.outstanding = true;
        raise(self.fd.as_ref());
        true
    }
}

impl Messages {
    fn new(count: u32) -> Self {
        Self((0..count).map(|_| Message::default()).collect())
    }

    fn in_use(&self) -> bool {
        self.0.iter().any(|message| message.fd.is_some())
    }
}

impl Message {
    fn signal(&mut self) -> bool {
        let due = self.pending && self.fd.is_some();
        if due {
            self.pending = false;
            raise(self.fd.as_ref());
        }
        due
    }
}

fn raise(fd: Option<&ClientFd>) {
    if let Some(fd) = fd {
        fd.signal();
    }
}
