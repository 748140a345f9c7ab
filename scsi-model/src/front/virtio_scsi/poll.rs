//! The poll of a controller: chains off the rings, tasks through the units, answers back.

use blk_core::bus::Quiet;
use blk_core::memory::GuestMemory;
use blk_core::storage::Storage;
use blk_core::virtq::{InflightTracker, QueueError};

use super::address::{Address, Addressed};
use super::bay::{Attached, Bay};
use super::controller::{Controller, NEXUS};
use super::events::Happened;
use super::io::Io;
use super::pending::{Data, Pending, Place};
use super::policy::Policy;
use super::requests::{self, Answer, BAD_ATTRIBUTE, Lane, Request, luns};
use super::rings::{CONTROL, Chain, EVENT, REQUEST, running};
use super::target::{self, Responder};
use super::wire::{Features, Response};
use crate::disk::{Progress, Reply};
use crate::sense::Sense;
use crate::task_set::Task;

/// Result of a poll.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Polled {
    /// Bit n: the driver wants a used-buffer interrupt for ring n.
    pub interrupts: u64,
    /// Bounded work was done, and more is left: poll again. Otherwise poll when the driver notifies, when a storage has a
    /// completion, or when something that the controller has not been told of has changed, such as a capacity.
    pub again: bool,
}

impl<const Q: usize, const L: usize, const N: usize> Controller<Q, L, N> {
    /// Makes bounded progress: takes requests and completions, answers, delivers events.
    ///
    /// `storage` has a handle for each unit, `logs` a log for each ring; a ring without one is not served. Policy and
    /// handles may change between calls, the handles only where [`Self::has_unit`] is false.
    pub fn poll<M, H, I>(&mut self, memory: &M, storage: &mut [H], policy: &Policy, logs: &mut [I]) -> Polled
    where
        M: GuestMemory + ?Sized,
        H: Storage<M>,
        I: InflightTracker,
    {
        let again = self.work(memory, storage, policy, logs);
        Polled { interrupts: self.publish(memory, logs), again }
    }

    /// The first half of [`Self::poll`]: everything but to show the driver what was answered, which [`Self::publish`] does.
    /// What is to outlive the device is kept in between, such as a [setting](Self::setting) of which an answer tells.
    /// Returns whether to call again at once.
    pub fn work<M, H, I>(&mut self, memory: &M, storage: &mut [H], policy: &Policy, logs: &mut [I]) -> bool
    where
        M: GuestMemory + ?Sized,
        H: Storage<M>,
        I: InflightTracker,
    {
        if self.resetting {
            self.finish_reset(memory, storage);
            return false;
        }
        let io = &mut Io { memory, storage, policy, logs };
        let mut again = false;
        let mut budgets = [0; Q];
        for (index, budget) in (REQUEST..).zip(&mut budgets) {
            *budget = self.rings.get(index).map_or(0, |ring| ring.setup().size.max(1));
        }
        let mut functions = self.rings.get(CONTROL).map_or(0, |ring| ring.setup().size.max(1));
        loop {
            // Looked for before the request rings are: what a function is about is then in the task sets.
            let asked = self.is_asked(io);
            let mut moved = false;
            let mut all = true;
            for (index, budget) in (REQUEST..).zip(&mut budgets) {
                let before = *budget;
                all &= self.take_requests(index, io, budget);
                moved |= *budget != before;
            }
            if asked && all && functions != 0 {
                moved |= self.take_function(io);
                functions = functions.saturating_sub(1);
            }
            moved |= self.run_units(io, &mut again);
            moved |= self.end_function(io);
            if !all || functions == 0 {
                again = true;
                break;
            }
            if !moved && !self.enable_notifications(io) {
                break;
            }
        }
        self.deliver_events(io);
        again
    }

    /// Goes on with a reset, and returns whether it is over. Bounded by what is in flight.
    pub fn finish_reset<M, H>(&mut self, memory: &M, storage: &mut [H]) -> bool
    where
        M: GuestMemory + ?Sized,
        H: Storage<M>,
    {
        if !self.resetting {
            return true;
        }
        // Nobody is told of what ends: the chains are gone.
        let closed = Policy { features: Features::empty(), open: 0 };
        let mut again = false;
        self.run_units(&mut Io { memory, storage, policy: &closed, logs: &mut [(); 0] }, &mut again);
        let mut units = storage.iter().zip(&self.units).filter_map(|(_, bay)| bay.as_ref());
        self.resetting = !units.all(|attached| attached.unit.is_quiet());
        !self.resetting
    }

    /// Takes what ring `index` has, and returns whether that was all.
    fn take_requests<M, H, I>(&mut self, index: usize, io: &mut Io<'_, M, H, I>, budget: &mut u16) -> bool
    where
        M: GuestMemory + ?Sized,
        H: Storage<M>,
        I: InflightTracker,
    {
        if !io.policy.is_open(index) {
            return true;
        }
        let Ok(number) = u16::try_from(index) else { return true };
        if let Some((ring, _)) = running(&mut self.rings, io.logs, index) {
            // An error has broken the ring, which says so by itself.
            let _ = ring.fetch_avail_idx(io.memory);
        }
        while let Some((ring, log)) = running(&mut self.rings, io.logs, index) {
            if !ring.has_fetched(log) {
                break;
            }
            if *budget == 0 {
                return false;
            }
            let Ok(Some(head)) = ring.peek(io.memory, log) else { break };
            let mut chain = Chain::new();
            if requests::take(ring, io.memory, log, head, &mut chain).is_err() {
                break;
            }
            *budget = budget.saturating_sub(1);
            match requests::decode(&chain, (number, head), self.sizes) {
                Some(request) => self.begin(request, io),
                None => {
                    let nothing = (Data::In { bytes: 0 }, &Answer::refused(Response::Failure));
                    self.answer(Place { ring: number, head, response: None }, nothing, io);
                }
            }
        }
        true
    }

    /// Gives a request to its unit, or answers it.
    #[inline(always)]
    fn begin<M, H, I>(&mut self, request: Request, io: &mut Io<'_, M, H, I>)
    where
        M: GuestMemory + ?Sized,
        H: Storage<M>,
        I: InflightTracker,
    {
        if let Addressed::Unit(address) = request.to
            && let Some(index) = self.find(address, io.storage)
        {
            return self.enqueue(index, request, io);
        }
        // A copy: the usual request is not kept in memory for this.
        self.answer_for_target(&Request { ..request }, io);
    }

    /// Answers a request that no unit here is for. Apart, for it needs more stack.
    #[inline(never)]
    fn answer_for_target<M, H, I>(&mut self, request: &Request, io: &mut Io<'_, M, H, I>)
    where
        M: GuestMemory + ?Sized,
        H: Storage<M>,
        I: InflightTracker,
    {
        let responder = match request.to {
            Addressed::ReportLuns => Responder::WellKnown,
            Addressed::Unit(address) => Responder::Absent { zero: address.lun == 0 },
            Addressed::Within(_) => Responder::Absent { zero: false },
            Addressed::Nowhere => return self.refuse(request, Response::BadTarget, io),
        };
        if request.to.target().is_some_and(|target| !self.has_target(target)) {
            return self.refuse(request, Response::BadTarget, io);
        }
        let mut reply = Reply::new();
        let replied = match request.to.target() {
            Some(target) => {
                target::answer(responder, &request.cdb, luns(&self.addresses, target), &mut reply)
            }
            // The host's units, each by its whole address: a level for the target, a level for the unit.
            None => {
                let addresses = self.addresses.iter().flatten().copied().map(Address::encode);
                target::answer(responder, &request.cdb, addresses, &mut reply)
            }
        };
        match replied {
            Ok(allocation) => self.reply(request, &reply, allocation, io),
            Err(sense) => self.check(request.chain, request.data, sense, io),
        }
    }

    /// Takes a request into the task set of the unit on handle `index`.
    #[inline(always)]
    fn enqueue<M, H, I>(&mut self, index: usize, request: Request, io: &mut Io<'_, M, H, I>)
    where
        M: GuestMemory + ?Sized,
        I: InflightTracker,
    {
        let Request { chain, id, attribute, data, data_at, cdb, .. } = request;
        let Some(attribute) = attribute else { return self.check(chain, data, BAD_ATTRIBUTE, io) };
        let Some(Attached { unit, requests }) = self.units.get_mut(index).and_then(Bay::as_mut) else {
            return;
        };
        let taken = requests.free_tag().is_some_and(|tag| {
            let (data_out_bytes, data_in_bytes) = (data.out_bytes(), data.in_bytes());
            let task = Task { tag, nexus: NEXUS, attribute, cdb, data_out_bytes, data_in_bytes };
            let taken = unit.enqueue(task).is_ok();
            if taken {
                requests.insert(tag, Pending { chain, id, data, data_at, cancelled: Response::Aborted });
            }
            taken
        });
        if !taken {
            // `cmd_per_lun` says how many there may be (5.6.4.1).
            self.answer(chain, (data, &Answer::FULL), io);
        }
    }

    fn refuse<M, H, I>(&mut self, request: &Request, response: Response, io: &mut Io<'_, M, H, I>)
    where
        M: GuestMemory + ?Sized,
        I: InflightTracker,
    {
        self.answer(request.chain, (request.data, &Answer::refused(response)), io);
    }

    #[cold]
    fn check<M, H, I>(&mut self, chain: Place, data: Data, sense: Sense, io: &mut Io<'_, M, H, I>)
    where
        M: GuestMemory + ?Sized,
        I: InflightTracker,
    {
        let sense = sense.encode(false);
        self.answer(chain, (data, &Answer::check_condition(&sense)), io);
    }

    /// Answers with data of the target's own.
    fn reply<M, H, I>(&mut self, request: &Request, reply: &Reply, allocation: u32, io: &mut Io<'_, M, H, I>)
    where
        M: GuestMemory + ?Sized,
        I: InflightTracker,
    {
        let wanted = usize::try_from(allocation).unwrap_or(usize::MAX).min(reply.bytes().len());
        if request.data.in_bytes() < wanted as u64 {
            return self.refuse(request, Response::Overrun, io);
        }
        let bytes = reply.bytes().get(..wanted).unwrap_or_default();
        let put = requests::put_data(&mut self.rings, io.memory, request.chain, bytes, self.sizes);
        // An error has broken the ring.
        if put.is_ok() {
            self.answer(request.chain, (request.data, &Answer::good(wanted as u64)), io);
        }
    }

    fn answer<M, H, I>(&mut self, chain: Place, answer: (Data, &Answer<'_>), io: &mut Io<'_, M, H, I>)
    where
        M: GuestMemory + ?Sized,
        I: InflightTracker,
    {
        // An error has broken the ring: there is nobody to be answered.
        let _ = requests::answer(&mut self.rings, io.logs, io.memory, chain, answer, self.sizes);
    }

    /// Polls the units that have anything to do, and returns whether a task has ended.
    fn run_units<M, H, I>(&mut self, io: &mut Io<'_, M, H, I>, again: &mut bool) -> bool
    where
        M: GuestMemory + ?Sized,
        H: Storage<M>,
        I: InflightTracker,
    {
        let Self { rings, addresses, units, sizes, events, .. } = self;
        let mut ended = false;
        for (index, (bay, handle)) in units.iter_mut().zip(io.storage.iter_mut()).enumerate() {
            let Some(Attached { unit, requests }) = bay.as_mut() else { continue };
            let address = addresses.get(index).copied().flatten();
            loop {
                let quiet = unit.is_quiet();
                if quiet {
                    // Nothing is in flight: a storage takes over another size when it is polled, and nobody else polls it.
                    let _ = handle.poll(io.memory);
                }
                if unit.notice_capacity(handle.info())
                    && let Some(address) = address
                {
                    events.push(rings.get(EVENT), address, Happened::Resized);
                }
                if quiet {
                    break;
                }
                let mut lane = Lane {
                    memory: io.memory,
                    rings: &mut *rings,
                    logs: &mut *io.logs,
                    requests: &mut *requests,
                    addresses: &*addresses,
                    target: address.map_or(0, |address| address.target),
                    sizes: *sizes,
                };
                let progress = unit.poll_each(io.memory, handle, &mut lane, |lane, one| {
                    ended = true;
                    lane.end(one);
                });
                match progress {
                    Progress::Ended => {}
                    Progress::Some => {
                        *again = true;
                        break;
                    }
                    Progress::None => break,
                }
            }
            if address.is_none() && unit.is_quiet() {
                bay.vacate();
            }
        }
        ended
    }

    /// Asks for notifications, and returns whether one was just missed.
    fn enable_notifications<M, H, I>(&mut self, io: &mut Io<'_, M, H, I>) -> bool
    where
        M: GuestMemory + ?Sized,
        I: InflightTracker,
    {
        let waiting = self.function.is_some();
        let mut missed = false;
        // The event queue is asked for when there is something to say.
        for index in [CONTROL].into_iter().chain(REQUEST..self.ring_count()) {
            if (index == CONTROL && waiting) || !io.policy.is_open(index) {
                continue;
            }
            if let Some((ring, _)) = running(&mut self.rings, io.logs, index) {
                missed |= ring.enable_notification(io.memory).unwrap_or(false);
            }
        }
        missed
    }

    fn deliver_events<M, H, I>(&mut self, io: &mut Io<'_, M, H, I>)
    where
        M: GuestMemory + ?Sized,
        I: InflightTracker,
    {
        if !io.policy.is_open(EVENT) {
            return;
        }
        if let Some((ring, log)) = running(&mut self.rings, io.logs, EVENT) {
            let _: Result<(), QueueError> = self.events.deliver(ring, io.memory, io.policy.features, log);
        }
    }

    /// Shows the driver what was answered, and returns for which rings it wants an interrupt. The control ring comes last: what
    /// a function has aborted is seen to have ended before the function is (5.6.6.2).
    pub fn publish<M, I>(&mut self, memory: &M, logs: &mut [I]) -> u64
    where
        M: GuestMemory + ?Sized,
        I: InflightTracker,
    {
        let mut interrupts = 0;
        for index in (REQUEST..self.ring_count()).chain([EVENT, CONTROL]) {
            let Some((ring, log)) = running(&mut self.rings, logs, index) else { continue };
            if ring.publish(memory, log).unwrap_or(false) {
                interrupts |=
                    u32::try_from(index).ok().and_then(|index| 1_u64.checked_shl(index)).unwrap_or(0);
            }
        }
        interrupts
    }
}
