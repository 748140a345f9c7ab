//! The request queues: commands in, their answers out. VIRTIO 1.3, 5.6.6.1.

use core::ops::Range;

use blk_core::memory::{GuestMemory, MemoryError};
use blk_core::op::Segment;
use blk_core::units::GuestAddr;
use blk_core::virtq::{InflightTracker, Queue, QueueError};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::address::{Address, Addressed};
use super::pending::{Data, Pending, PendingTable, Place};
use super::rings::{CDB_BYTES, Chain, Rings, pieces, put, running};
use super::sizes::{SENSE_BYTES_MAX, Sizes};
use super::wire::{RequestHead, Response, ResponseHead, attribute};
use crate::command::Cdb;
use crate::disk::{Ended, Outcome};
use crate::sense::{Code, Key, Sense};
use crate::task_set::Attribute;
use crate::transport::{DataError, Direction, SegmentList, Transport};

const HEAD_BYTES: usize = size_of::<RequestHead>();
const RESPONSE_BYTES: usize = size_of::<ResponseHead>();

/// SCSI status codes: SAM-5, status codes.
const GOOD: u8 = 0x00;
const CHECK_CONDITION: u8 = 0x02;
const TASK_SET_FULL: u8 = 0x28;

/// A request, taken off its ring and decoded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) to: Addressed,
    pub(super) id: u64,
    /// `None`: one that no unit here has.
    pub(super) attribute: Option<Attribute>,
    pub(super) cdb: Cdb,
    pub(super) data: Data,
    /// Where the data is, if it is in one piece.
    pub(super) data_at: Option<GuestAddr>,
    pub(super) chain: Place,
}

/// Answer to a request.
#[derive(Debug)]
pub(super) struct Answer<'a> {
    pub(super) response: Response,
    status: u8,
    sense: &'a [u8],
    /// Bytes of data that were moved.
    moved_bytes: u64,
}

impl Answer<'_> {
    /// Nothing was done.
    pub(super) const fn refused(response: Response) -> Self {
        Self { response, status: GOOD, sense: &[], moved_bytes: 0 }
    }

    pub(super) const FULL: Self = Self { status: TASK_SET_FULL, ..Self::refused(Response::Ok) };

    pub(super) const fn good(moved_bytes: u64) -> Self {
        Self { moved_bytes, ..Self::refused(Response::Ok) }
    }
}

impl<'a> Answer<'a> {
    pub(super) const fn check_condition(sense: &'a [u8]) -> Self {
        Self { response: Response::Ok, status: CHECK_CONDITION, sense, moved_bytes: 0 }
    }

    /// What the unit says. `cancelled` answers for a task that was aborted.
    pub(super) fn of(outcome: &'a Outcome, moved_bytes: u64, cancelled: Response) -> Self {
        match outcome {
            Outcome::Good => Self::good(moved_bytes),
            Outcome::CheckCondition(sense) => Self { moved_bytes, ..Self::check_condition(sense) },
            Outcome::Overrun => Self::refused(Response::Overrun),
            Outcome::Aborted => Self::refused(cancelled),
        }
    }
}

/// The sense data for a task attribute that no unit here has, ACA among them: SAM-5, task attributes.
pub(super) const BAD_ATTRIBUTE: Sense = Sense::new(Key::IllegalRequest, Code::INVALID_MESSAGE);

/// Reads the chain at `head` and takes it off `ring`, unless nobody can be told what comes of it.
#[inline(always)]
pub(super) fn take<M: GuestMemory + ?Sized>(
    ring: &mut Queue,
    memory: &M,
    log: &mut impl InflightTracker,
    head: u16,
    chain: &mut Chain,
) -> Result<(), QueueError> {
    chain.read(ring, memory, head)?;
    if chain.writable.bytes < RESPONSE_BYTES as u64 {
        return Err(ring.break_with(QueueError::Unanswerable));
    }
    ring.pop(log, head);
    Ok(())
}

/// The request in a chain: `None` if it has no room for its header (host-std/tests/defects.md, 5) or for sense data, or data both ways.
#[inline(always)]
pub(super) fn decode(chain: &Chain, (ring, head): (u16, u16), sizes: Sizes) -> Option<Request> {
    let place = Place { ring, head, response: chain.writable.head(sizes.response_bytes()) };
    let (head, _) = RequestHead::read_from_prefix(&chain.header).ok()?;
    let block: &[u8; CDB_BYTES] = chain.header.get(HEAD_BYTES..)?.first_chunk()?;
    let out_bytes = chain.readable.bytes.checked_sub(sizes.request_bytes()).filter(|_| chain.legible)?;
    let in_bytes = chain.writable.bytes.checked_sub(sizes.response_bytes())?;
    let (data, data_at) = match (out_bytes, in_bytes) {
        (0, bytes) => (Data::In { bytes }, chain.writable.tail(sizes.response_bytes())),
        (bytes, 0) => (Data::Out { bytes }, chain.readable.tail(sizes.request_bytes())),
        _ => return None,
    };
    let cdb = match block.get(..usize::from(sizes.cdb_bytes)) {
        Some(short) => Cdb::new(short),
        None => Cdb::whole(*block),
    };
    Some(Request {
        to: Addressed::decode(head.lun),
        id: head.id.get(),
        attribute: match head.task_attr {
            attribute::SIMPLE => Some(Attribute::Simple),
            attribute::ORDERED => Some(Attribute::Ordered),
            attribute::HEAD => Some(Attribute::HeadOfQueue),
            _ => None,
        },
        cdb,
        data,
        data_at,
        chain: place,
    })
}

/// Writes what became of a request, and returns its chain. `data` is what its header announced.
pub(super) fn answer<M, I, const Q: usize>(
    rings: &mut Rings<Q>,
    logs: &mut [I],
    memory: &M,
    place: Place,
    (data, answer): (Data, &Answer<'_>),
    sizes: Sizes,
) -> Result<(), QueueError>
where
    M: GuestMemory + ?Sized,
    I: InflightTracker,
{
    let Some((ring, log)) = running(rings, logs, place.ring.into()) else { return Ok(()) };
    let sense = answer.sense.get(..usize::from(sizes.sense_bytes)).unwrap_or(answer.sense);
    let head = ResponseHead {
        sense_len: u32::try_from(sense.len()).unwrap_or(0).into(),
        residual: u32::try_from(data.bytes().saturating_sub(answer.moved_bytes)).unwrap_or(u32::MAX).into(),
        status_qualifier: 0.into(),
        status: answer.status,
        response: answer.response as u8,
    };
    // The data lies behind the room for sense data: what is counted as written is written, with zeroes (CVE-2024-8612).
    let moved_in = answer.moved_bytes.min(data.in_bytes());
    let bytes = if moved_in == 0 { RESPONSE_BYTES.saturating_add(sense.len()) } else { sizes.response_len() };
    let written = match place.response {
        // Nearly always it is one of these two, of constant length.
        Some(addr) if bytes == RESPONSE_BYTES => write(ring, memory, addr, head.as_bytes())?,
        Some(addr) if bytes == size_of::<UsualResponse>() && sense.is_empty() => {
            write(ring, memory, addr, UsualResponse { head, sense: [0; _] }.as_bytes())?
        }
        _ => write_response(ring, memory, place, (&head, sense), bytes)?,
    };
    if (written as usize) < RESPONSE_BYTES {
        // The driver has changed the chain meanwhile.
        return Err(ring.break_with(QueueError::Unanswerable));
    }
    let moved_in = u32::try_from(moved_in).unwrap_or(u32::MAX);
    ring.add_used(memory, log, place.head, written.saturating_add(moved_in))
}

/// A response with room for sense data of the length that drivers leave as it is, and none in it.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct UsualResponse {
    head: ResponseHead,
    sense: [u8; Sizes::DEFAULT.sense_bytes as usize],
}

/// Writes a response with its sense data, and zeroes up to `bytes`, as far as the chain has room for it.
#[inline(never)]
fn write_response<M: GuestMemory + ?Sized>(
    ring: &mut Queue,
    memory: &M,
    place: Place,
    (head, sense): (&ResponseHead, &[u8]),
    bytes: usize,
) -> Result<u32, QueueError> {
    let mut buffer = [0; RESPONSE_BYTES + SENSE_BYTES_MAX];
    let parts = head.as_bytes().iter().chain(sense);
    buffer.iter_mut().zip(parts).for_each(|(place, byte)| *place = *byte);
    let response = buffer.get(..bytes).unwrap_or(&buffer);
    match place.response {
        Some(addr) => write(ring, memory, addr, response),
        None => put(ring, memory, place.head, 0, response),
    }
}

/// Writes into guest memory of a chain in `ring`, and returns how much.
#[inline(always)]
fn write<M: GuestMemory + ?Sized>(
    ring: &mut Queue,
    memory: &M,
    addr: GuestAddr,
    bytes: &[u8],
) -> Result<u32, QueueError> {
    match memory.write(addr, bytes) {
        Ok(()) => Ok(bytes.len() as u32),
        Err(MemoryError) => Err(ring.break_with(QueueError::Memory)),
    }
}

/// Puts `bytes` into the data-in buffer of a request that its target answers itself.
pub(super) fn put_data<M: GuestMemory + ?Sized, const Q: usize>(
    rings: &mut Rings<Q>,
    memory: &M,
    place: Place,
    bytes: &[u8],
    sizes: Sizes,
) -> Result<(), QueueError> {
    let Some(ring) = rings.get_mut(place.ring.into()) else { return Ok(()) };
    put(ring, memory, place.head, sizes.response_bytes(), bytes).map(drop)
}

/// A controller as one of its logical units sees it.
pub(super) struct Lane<'a, M: ?Sized, I, const Q: usize, const N: usize> {
    pub(super) memory: &'a M,
    pub(super) rings: &'a mut Rings<Q>,
    pub(super) logs: &'a mut [I],
    pub(super) requests: &'a mut PendingTable<N>,
    pub(super) addresses: &'a [Option<Address>],
    pub(super) target: u8,
    pub(super) sizes: Sizes,
}

impl<M, I, const Q: usize, const N: usize> Lane<'_, M, I, Q, N>
where
    M: GuestMemory + ?Sized,
    I: InflightTracker,
{
    /// Answers a request whose task has ended.
    pub(super) fn end(&mut self, ended: &Ended) {
        // After a reset there is no one to be told.
        let Some(pending) = self.requests.get(ended.tag) else { return };
        let answer = Answer::of(&ended.outcome, ended.transferred_bytes, pending.cancelled);
        let answer = (pending.data, &answer);
        // An error has broken the ring: there is nobody to be answered.
        let _ = self::answer(self.rings, self.logs, self.memory, pending.chain, answer, self.sizes);
        self.requests.remove(ended.tag);
    }
}

impl<M, I, const Q: usize, const N: usize> Transport for Lane<'_, M, I, Q, N>
where
    M: GuestMemory + ?Sized,
    I: InflightTracker,
{
    #[inline]
    fn segments(
        &mut self,
        tag: u64,
        direction: Direction,
        range: Range<u64>,
        list: &mut SegmentList,
    ) -> Result<(), DataError> {
        let Pending { chain: Place { ring, head, .. }, data_at, .. } =
            *self.requests.get(tag).ok_or(DataError)?;
        if let Some(addr) = data_at {
            let len = u32::try_from(range.end.saturating_sub(range.start)).unwrap_or(u32::MAX);
            let addr = GuestAddr(addr.0.wrapping_add(range.start));
            return list.push(Segment::Guest { addr, len }).map_err(|_| DataError);
        }
        let ring = self.rings.get_mut(ring.into()).ok_or(DataError)?;
        let (writable, skip) = match direction {
            Direction::In => (true, self.sizes.response_bytes()),
            Direction::Out => (false, self.sizes.request_bytes()),
        };
        let range = range.start.saturating_add(skip)..range.end.saturating_add(skip);
        let walked = pieces(ring, self.memory, head, writable, range, |addr, len| {
            // The unit asks again for what finds no room: nothing that follows does either.
            let _ = list.push(Segment::Guest { addr, len });
        });
        walked.map_err(|_| DataError)
    }

    fn has_begun(&self, tag: u64) -> bool {
        let Some(Pending { chain: Place { ring, head, .. }, .. }) = self.requests.get(tag) else {
            return false;
        };
        self.logs.get(usize::from(*ring)).is_some_and(|log| log.stage(*head) != 0)
    }

    fn note_begun(&mut self, tag: u64) {
        if let Some(Pending { chain: Place { ring, head, .. }, .. }) = self.requests.get(tag)
            && let Some(log) = self.logs.get_mut(usize::from(*ring))
        {
            log.set_stage(*head, 1);
        }
    }

    fn lun(&self, index: usize) -> Option<[u8; 8]> {
        luns(self.addresses, self.target).nth(index)
    }
}

/// The logical unit numbers of a target, as REPORT LUNS lists them.
pub(super) fn luns(addresses: &[Option<Address>], target: u8) -> impl Iterator<Item = [u8; 8]> {
    let of_target = addresses.iter().flatten().filter(move |address| address.target == target);
    of_target.map(|address| address.single_level())
}
