//! Slots of a queue: the places of each request and its data in guest memory.

use blk_core::units::GuestAddr;

use super::queue::{Span, after, page_up};
use super::ticket::Ticket;

/// Most bytes of a request's own header: more than any command's.
pub(super) const REQUEST_MAX: u32 = 256;
/// Most bytes of what the device answers beside data.
pub(super) const RESPONSE_MAX: u32 = 256;
const DESCRIPTOR_BYTES: u64 = 16;

/// The slots of one queue: a page or more each of header, answer and descriptor table, then their buffers.
#[derive(Debug)]
pub(super) struct Slots {
    start: GuestAddr,
    buffers: GuestAddr,
    control_bytes: u64,
    transfer_bytes: u32,
    segment_bytes: u32,
    free: Vec<u16>,
    /// By the head of the chain: whose it is.
    tickets: Vec<Option<Ticket>>,
    /// By slot: how much data it holds.
    data: Vec<u32>,
}

impl Slots {
    fn control_bytes(transfer_bytes: u32, segment_bytes: u32) -> u64 {
        let segments = u64::from(transfer_bytes.div_ceil(segment_bytes));
        let control = u64::from(REQUEST_MAX + RESPONSE_MAX) + DESCRIPTOR_BYTES * (2 + 2 * segments);
        control.next_multiple_of(64)
    }

    pub(super) fn bytes(size: u16, transfer_bytes: u32, segment_bytes: u32) -> u64 {
        let control = Self::control_bytes(transfer_bytes, segment_bytes) * u64::from(size);
        page_up(control) + page_up(u64::from(transfer_bytes)) * u64::from(size)
    }

    pub(super) fn new(start: GuestAddr, size: u16, transfer_bytes: u32, segment_bytes: u32) -> Self {
        let control_bytes = Self::control_bytes(transfer_bytes, segment_bytes);
        let buffers = after(start, page_up(control_bytes * u64::from(size)));
        Self {
            start,
            buffers,
            control_bytes,
            transfer_bytes,
            segment_bytes,
            free: (0..size).rev().collect(),
            tickets: vec![None; usize::from(size)],
            data: vec![0; usize::from(size)],
        }
    }

    /// Everything free again: the ring was reset.
    pub(super) fn reset(&mut self) {
        self.free = (0..self.tickets.len() as u16).rev().collect();
        self.tickets.fill(None);
    }

    pub(super) fn next_free(&self) -> Option<u16> {
        self.free.last().copied()
    }

    /// The slot that [`Self::next_free`] named is taken by the chain at `head`.
    pub(super) fn take(&mut self, head: u16, ticket: Ticket, data: u32) {
        self.free.pop();
        self.tickets[usize::from(head)] = Some(ticket);
        self.data[usize::from(ticket.slot)] = data;
    }

    pub(super) fn give_back(&mut self, head: u16) -> Ticket {
        let ticket = self.tickets[usize::from(head)].take().expect("the queue knows the chains in flight");
        self.free.push(ticket.slot);
        ticket
    }

    pub(super) fn request(&self, slot: u16) -> GuestAddr {
        after(self.start, self.control_bytes * u64::from(slot))
    }

    pub(super) fn response(&self, slot: u16) -> GuestAddr {
        after(self.request(slot), u64::from(REQUEST_MAX))
    }

    pub(super) fn table(&self, slot: u16) -> GuestAddr {
        after(self.response(slot), u64::from(RESPONSE_MAX))
    }

    pub(super) fn buffer(&self, slot: u16) -> GuestAddr {
        after(self.buffers, page_up(u64::from(self.transfer_bytes)) * u64::from(slot))
    }

    /// How much data the last request of the slot had.
    pub(super) fn data(&self, slot: u16) -> u32 {
        self.data[usize::from(slot)]
    }

    pub(super) fn fits(&self, bytes: usize) -> bool {
        bytes <= self.transfer_bytes as usize
    }

    /// The first `bytes` of a slot's buffer, cut into segments.
    pub(super) fn spans(&self, slot: u16, bytes: u32) -> impl Iterator<Item = Span> {
        let (start, most) = (self.buffer(slot), self.segment_bytes);
        (0..bytes.div_ceil(most)).map(move |index| {
            let at = index * most;
            Span { addr: after(start, u64::from(at)), len: most.min(bytes - at) }
        })
    }
}
