//! The control queue: task management functions, and asynchronous notifications, of which there are none. VIRTIO 1.3,
//! 5.6.6.2; SAM-5, task management functions.

use blk_core::memory::GuestMemory;
use blk_core::mutant::{Mutant, active};
use blk_core::storage::Storage;
use blk_core::virtq::{InflightTracker, Queue, QueueError};
use zerocopy::FromBytes;

use super::address::Addressed;
use super::bay::Bay;
use super::controller::{Controller, Function, NEXUS};
use super::io::Io;
use super::rings::{CONTROL, Chain, put, running};
use super::wire::{Management, Notification, Response, control, function};
use crate::disk::ResetCause;

/// `event_actual`, which comes before the response to a notification request.
const ACTUAL_BYTES: u64 = 4;

/// Function that the driver asks for.
enum Asked {
    Management(Management),
    /// The driver would like to hear of media events.
    Notification(Notification),
    Unknown,
}

/// Effect of a function.
enum Effect {
    Answered(Response),
    /// It is complete once what it aborts has ended.
    Waits,
}

impl<const Q: usize, const L: usize, const N: usize> Controller<Q, L, N> {
    /// Whether there is something in the control queue, and nothing under way.
    pub(super) fn is_asked<M, H, I>(&mut self, io: &mut Io<'_, M, H, I>) -> bool
    where
        M: GuestMemory + ?Sized,
        I: InflightTracker,
    {
        if self.function.is_some() || !io.policy.is_open(CONTROL) {
            return false;
        }
        let Some((ring, log)) = running(&mut self.rings, io.logs, CONTROL) else { return false };
        ring.fetch_avail_idx(io.memory).is_ok() && ring.has_fetched(log)
    }

    /// Takes a request off the control queue, and returns whether it could.
    pub(super) fn take_function<M, H, I>(&mut self, io: &mut Io<'_, M, H, I>) -> bool
    where
        M: GuestMemory + ?Sized,
        H: Storage<M>,
        I: InflightTracker,
    {
        let Some((ring, log)) = running(&mut self.rings, io.logs, CONTROL) else { return false };
        let Ok(Some(head)) = ring.peek(io.memory, log) else { return false };
        let Ok(asked) = take(ring, io.memory, log, head) else { return false };
        let effect = match asked {
            Asked::Management(management) => self.manage(&management, io.storage),
            Asked::Notification(Notification { lun, .. }) => {
                let nothing = self.lacks(Addressed::decode(lun), io.storage).unwrap_or(Response::Ok);
                self.answer_notification(head, nothing, io);
                return true;
            }
            Asked::Unknown => Effect::Answered(Response::Failure),
        };
        match effect {
            Effect::Answered(response) => self.answer_function(head, 0, response, io),
            Effect::Waits => self.function = Some(Function { head }),
        }
        true
    }

    /// Answers the function that is under way if all that it aborted has ended, and returns whether it did.
    pub(super) fn end_function<M, H, I>(&mut self, io: &mut Io<'_, M, H, I>) -> bool
    where
        M: GuestMemory + ?Sized,
        I: InflightTracker,
    {
        let Some(Function { head }) = self.function else { return false };
        let waits = self.attached().any(|attached| attached.unit.is_managing());
        if waits && !active(Mutant::AbortWithoutDrain) {
            return false;
        }
        self.function = None;
        self.answer_function(head, 0, Response::Ok, io);
        true
    }

    fn manage<H>(&mut self, management: &Management, storage: &[H]) -> Effect {
        let to = Addressed::decode(management.lun);
        let subtype = management.subtype.get();
        if subtype == function::I_T_NEXUS_RESET {
            return self.reset_nexus(to);
        }
        let index = match self.locate(to, storage) {
            Ok(index) => index,
            Err(response) => return Effect::Answered(response),
        };
        let Some(attached) = self.units.get_mut(index).and_then(Bay::as_mut) else {
            return Effect::Answered(Response::IncorrectLun);
        };
        let id = management.id.get();
        let named = |id: u64| move |pending: &super::pending::Pending| pending.id == id;
        match subtype {
            function::ABORT_TASK => {
                for (tag, _) in attached.requests.iter().filter(|(_, pending)| named(id)(pending)) {
                    attached.unit.abort_task(tag);
                }
                Effect::Waits
            }
            function::ABORT_TASK_SET => {
                attached.unit.abort_task_set(NEXUS);
                Effect::Waits
            }
            function::CLEAR_TASK_SET => {
                attached.unit.clear_task_set();
                Effect::Waits
            }
            function::LOGICAL_UNIT_RESET => {
                attached.requests.cancel(Response::Reset);
                attached.unit.reset(ResetCause::LogicalUnit);
                Effect::Waits
            }
            function::QUERY_TASK => found(attached.requests.iter().any(|(_, pending)| named(id)(pending))),
            function::QUERY_TASK_SET => found(attached.requests.iter().next().is_some()),
            // CLEAR ACA: there is no ACA condition (NORMACA=0).
            _ => Effect::Answered(Response::FunctionRejected),
        }
    }

    /// I_T NEXUS RESET, whose logical unit number does not matter.
    fn reset_nexus(&mut self, to: Addressed) -> Effect {
        let Some(target) = to.target().filter(|target| self.has_target(*target)) else {
            return Effect::Answered(Response::BadTarget);
        };
        for (bay, address) in self.units.iter_mut().zip(&self.addresses) {
            if let Some(attached) = bay.as_mut()
                && address.is_some_and(|address| address.target == target)
            {
                attached.requests.cancel(Response::Reset);
                attached.unit.lose_nexus(NEXUS);
            }
        }
        Effect::Waits
    }

    /// The unit that a function is for, or what to answer instead.
    fn locate<H>(&self, to: Addressed, storage: &[H]) -> Result<usize, Response> {
        if let Addressed::Unit(address) = to
            && let Some(index) = self.find(address, storage)
        {
            return Ok(index);
        }
        match to {
            Addressed::Unit(_) | Addressed::Within(_) => {
                let there = to.target().is_some_and(|target| self.has_target(target));
                Err(if there { Response::IncorrectLun } else { Response::BadTarget })
            }
            // It has no tasks of its own to manage.
            Addressed::ReportLuns => Err(Response::IncorrectLun),
            Addressed::Nowhere => Err(Response::BadTarget),
        }
    }

    /// What to answer where there is no unit.
    fn lacks<H>(&self, to: Addressed, storage: &[H]) -> Option<Response> {
        self.locate(to, storage).err()
    }

    /// Answers a notification request: no event can be reported.
    fn answer_notification<M, H, I>(&mut self, head: u16, response: Response, io: &mut Io<'_, M, H, I>)
    where
        M: GuestMemory + ?Sized,
        I: InflightTracker,
    {
        if let Some((ring, _)) = running(&mut self.rings, io.logs, CONTROL)
            && put(ring, io.memory, head, 0, &[0; ACTUAL_BYTES as usize]).is_ok()
        {
            self.answer_function(head, ACTUAL_BYTES, response, io);
        }
    }

    /// Writes the response at byte `offset` of the writable part, and returns the chain.
    fn answer_function<M, H, I>(
        &mut self,
        head: u16,
        offset: u64,
        response: Response,
        io: &mut Io<'_, M, H, I>,
    ) where
        M: GuestMemory + ?Sized,
        I: InflightTracker,
    {
        let Some((ring, log)) = running(&mut self.rings, io.logs, CONTROL) else { return };
        if let Ok(written) = put(ring, io.memory, head, offset, &[response as u8]) {
            let written = u32::try_from(offset).unwrap_or(0).saturating_add(written);
            // An error has broken the ring.
            let _ = ring.add_used(io.memory, log, head, written);
        }
    }
}

const fn found(there: bool) -> Effect {
    Effect::Answered(if there { Response::FunctionSucceeded } else { Response::Ok })
}

/// Reads the chain at `head` and takes it off the ring, unless it has no room for its answer.
fn take<M: GuestMemory + ?Sized>(
    ring: &mut Queue,
    memory: &M,
    log: &mut impl InflightTracker,
    head: u16,
) -> Result<Asked, QueueError> {
    let mut chain = Chain::new();
    chain.read(ring, memory, head)?;
    let asked = decode(&chain);
    let response_at = if matches!(asked, Asked::Notification(_)) { ACTUAL_BYTES } else { 0 };
    if chain.writable.bytes <= response_at {
        return Err(ring.break_with(QueueError::Unanswerable));
    }
    ring.pop(log, head);
    Ok(asked)
}

fn decode(chain: &Chain) -> Asked {
    let holds = |bytes: usize| chain.legible && chain.readable.bytes >= bytes as u64;
    if let Ok((management, _)) = Management::read_from_prefix(&chain.header)
        && management.kind.get() == control::TASK_MANAGEMENT
        && holds(size_of::<Management>())
    {
        return Asked::Management(management);
    }
    if let Ok((notification, _)) = Notification::read_from_prefix(&chain.header)
        && matches!(notification.kind.get(), control::NOTIFICATION_QUERY | control::NOTIFICATION_SUBSCRIBE)
        && holds(size_of::<Notification>())
    {
        return Asked::Notification(notification);
    }
    Asked::Unknown
}
