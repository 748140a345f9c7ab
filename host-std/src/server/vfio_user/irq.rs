//! The device's interrupt lines, as the client's eventfds.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blk_core::bus::IrqChange;
use blk_core::pci::{Capability, Function};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::protocol::{IrqFlags, IrqSet};
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

/// How long a message waits for more requests, whatever the guest does meanwhile.
const WAITING_MAX: Duration = Duration::from_micros(800);

/// At most so many looks of the handler from one wait for more to the next: a guest with one request at a time is kept waiting
/// once in so many.
const PATIENCE_MAX: u32 = 127;

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

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

/// When messages are signalled. A guest that has many requests under way sends new ones as it hears that old ones have ended;
/// if it heard of each by itself, most of its time would go into its interrupt handler, each of whose looks at a register is a
/// message to us and back. So a message waits until as many requests have come as the guest heard of the last time: that one
/// it has answered then. Now and then it waits for twice as many, and goes on so while more come: where the host is quick, the
/// guest would else be interrupted before it can send a second one. A guest whose handler reads no register never waits.
#[derive(Clone, Copy, Debug, Default)]
struct Moderation {
    /// How many have to come.
    expected: u32,
    /// As many the guest had heard of.
    heard: u32,
    /// The next looks of the handler after which no more are waited for than it heard of.
    content: u32,
    /// How many of them there are after a wait for more that was in vain.
    patience: u32,
    /// The handler has not looked since the last message.
    unheard: bool,
    /// What [`Requests`] was when it did.
    last: Requests,
    /// Since when a message has been waiting.
    since: Option<Instant>,
}

/// How many requests have come and how many have ended, wrapping.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Requests {
    pub(super) begun: u32,
    pub(super) ended: u32,
}

/// The pin. A client takes it for asserted from our signal until the guest accesses a register, and then unmasks; so it
/// masks itself with each signal, as VFIO's does.
#[derive(Debug, Default)]
struct Intx {
    fd: Option<OwnedFd>,
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
    fd: Option<OwnedFd>,
    /// Raised while there was nowhere to signal it: the client is setting it up.
    pending: bool,
}

impl Irqs {
    /// Those that a function has.
    pub(super) fn new(function: &Function, signalled: Arc<Counter>) -> Self {
        let count =
            |of: fn(&Capability) -> Option<u32>| function.capabilities.iter().find_map(of).unwrap_or(0);
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
        if self.due && (quiet || !self.moderation.waits(requests)) {
            self.due = false;
            (self.moderation.unheard, self.moderation.since) = (true, None);
            let signalled = self.messages().0.iter_mut().filter_map(|message| message.signal().then_some(1));
            let signalled = signalled.sum();
            self.signalled.add(signalled);
        }
        self.due
    }

    /// The guest has read a register.
    #[inline]
    pub(super) fn heard(&mut self, requests: Requests) {
        self.moderation.heard(requests);
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
                self.assign(set.index, range, fds);
                Ok(())
            }
            _ => Err(Errno::INVAL),
        }
    }

    /// Gives a range its eventfds, or none.
    fn assign(&mut self, index: u32, range: std::ops::Range<usize>, fds: Vec<OwnedFd>) {
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

impl Moderation {
    fn waits(&mut self, requests: Requests) -> bool {
        requests.begun.wrapping_sub(self.last.begun) < self.expected
            && self.since.get_or_insert_with(Instant::now).elapsed() < WAITING_MAX
    }

    fn heard(&mut self, requests: Requests) {
        if !std::mem::take(&mut self.unheard) {
            return;
        }
        let heard = requests.ended.wrapping_sub(self.last.ended);
        if self.expected > self.heard {
            // More were waited for.
            self.patience = if heard > self.heard { 0 } else { (self.patience * 2 + 1).min(PATIENCE_MAX) };
            self.content = self.patience;
        }
        (self.heard, self.last) = (heard, requests);
        self.expected = if self.content == 0 { heard.saturating_mul(2) } else { heard };
        self.content = self.content.saturating_sub(1);
    }
}

impl Intx {
    /// The level has changed. Returns whether that was signalled.
    fn set(&mut self, level: bool) -> bool {
        self.level = level;
        if !level && self.outstanding {
            // What the client has not seen is taken back. If it has, it unmasks later, which does no harm.
            if let Some(fd) = self.fd.as_ref().filter(|fd| readable(fd)) {
                let _ = rustix::io::read(fd, &mut [0; 8]);
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

fn readable(fd: &OwnedFd) -> bool {
    matches!(poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&NOW)), Ok(1..))
}

/// Signals an eventfd. Its flags are the client's, and it may be one that blocks: then it is full only if nobody reads it,
/// and whoever does finds it signalled.
fn raise(fd: Option<&OwnedFd>) {
    if let Some(fd) = fd
        && matches!(poll(&mut [PollFd::new(fd, PollFlags::OUT)], Some(&NOW)), Ok(1..))
    {
        let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use ata_model::DriveConfig;
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;
    use crate::server::vfio_user::devices;

    /// A device with one MSI message, and the client's side of its eventfd.
    fn one_message() -> (Irqs, OwnedFd) {
        let device = devices::ahci(vec![DriveConfig::new("D", "S")], false).unwrap();
        let mut irqs = Irqs::new(device.function(), Arc::default());
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        irqs.assign(MSI, 0..1, vec![fd.try_clone().unwrap()]);
        (irqs, fd)
    }

    /// So many requests have come and ended, each at once, and the device raises its message. Whether it is signalled.
    fn raised(irqs: &mut Irqs, fd: &OwnedFd, n: u32) -> bool {
        irqs.change(IrqChange { changed: 2, level: 2 });
        irqs.signal(Requests { begun: n, ended: n }, false);
        signalled(fd)
    }

    fn signalled(fd: &OwnedFd) -> bool {
        rustix::io::read(fd, &mut [0; 8]).is_ok()
    }

    /// The handler looks, when so many requests have come and ended.
    fn heard(irqs: &mut Irqs, n: u32) {
        // As Linux's does: it reads what is pending, and then what has ended.
        irqs.heard(Requests { begun: n, ended: n });
        irqs.heard(Requests { begun: n, ended: n });
    }

    fn quiet(irqs: &mut Irqs, fd: &OwnedFd, n: u32) -> bool {
        irqs.signal(Requests { begun: n, ended: n }, true);
        signalled(fd)
    }

    #[test]
    fn the_message_of_one_request_at_a_time_seldom_waits() {
        let (mut irqs, fd) = one_message();
        let mut waited = 0;
        for n in 1..=10_000 {
            if !raised(&mut irqs, &fd, n) {
                waited += 1;
                assert!(quiet(&mut irqs, &fd, n));
            }
            heard(&mut irqs, n);
        }
        assert!((1..90).contains(&waited), "{waited} of 10,000");
    }

    /// A guest with 32 under way, which is interrupted after each request if it can be.
    #[test]
    fn the_messages_of_many_requests_become_few() {
        let (mut irqs, fd) = one_message();
        let (mut n, mut messages) = (0, 0);
        while n < 10_000 {
            let mut sent = 0;
            while sent < 32 && !raised(&mut irqs, &fd, n + sent + 1) {
                sent += 1;
            }
            n += if sent == 32 { 32 } else { sent + 1 };
            assert!(sent < 32 || quiet(&mut irqs, &fd, n), "all have come");
            messages += 1;
            heard(&mut irqs, n);
        }
        assert!(messages < 10_000 / 32 + 10, "{messages} for 10,000");
    }

    #[test]
    fn a_message_waits_for_as_many_requests_as_the_guest_heard_of() {
        let (mut irqs, fd) = one_message();
        irqs.moderation.content = 9;
        assert!(raised(&mut irqs, &fd, 8), "nothing is known of this guest yet");
        // Two came before the handler looked, and of three the host has not answered one.
        irqs.heard(Requests { begun: 11, ended: 10 });
        for n in 12..21 {
            assert!(!raised(&mut irqs, &fd, n), "request {n}");
        }
        assert!(raised(&mut irqs, &fd, 21), "10 have come");
        irqs.heard(Requests { begun: 21, ended: 12 });
        assert!(!raised(&mut irqs, &fd, 22));
        assert!(raised(&mut irqs, &fd, 23), "2 have come, as 2 had ended");
    }

    #[test]
    fn a_message_waits_no_longer_when_the_guest_is_quiet() {
        let (mut irqs, fd) = one_message();
        assert!(raised(&mut irqs, &fd, 8));
        heard(&mut irqs, 8);
        assert!(!raised(&mut irqs, &fd, 9));
        assert!(quiet(&mut irqs, &fd, 9));
        heard(&mut irqs, 9);
        assert!(raised(&mut irqs, &fd, 10), "one at a time");
        assert!(!quiet(&mut irqs, &fd, 10), "only what the device raised");
    }

    #[test]
    fn a_message_waits_no_longer_than_it_may() {
        let (mut irqs, fd) = one_message();
        assert!(raised(&mut irqs, &fd, 8));
        heard(&mut irqs, 8);
        assert!(!raised(&mut irqs, &fd, 9));
        std::thread::sleep(WAITING_MAX);
        assert!(raised(&mut irqs, &fd, 10));
    }

    #[test]
    fn a_guest_whose_handler_reads_nothing_never_waits() {
        let (mut irqs, fd) = one_message();
        for n in 1..10 {
            assert!(raised(&mut irqs, &fd, n * 8));
        }
    }

    #[test]
    fn counts_of_requests_wrap() {
        let (mut irqs, fd) = one_message();
        assert!(raised(&mut irqs, &fd, u32::MAX - 1));
        heard(&mut irqs, u32::MAX - 1);
        irqs.moderation.expected = 3;
        assert!(!raised(&mut irqs, &fd, u32::MAX));
        assert!(!raised(&mut irqs, &fd, 0));
        assert!(raised(&mut irqs, &fd, 1));
    }
}
