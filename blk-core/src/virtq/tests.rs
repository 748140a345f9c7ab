//! Tests of rings under everything that drivers may do to them.

use std::vec::Vec;

use super::*;
use crate::memory::{CellMemory, GuestMemory};
use crate::units::GuestAddr;

const SIZE: u16 = 8;
const DESCRIPTORS: u64 = 0x100;
const AVAILABLE: u64 = 0x200;
const USED: u64 = 0x300;
const TABLE: u64 = 0x400;

const N: u16 = 1;
const W: u16 = 2;
const I: u16 = 4;

/// A ring of eight entries with a driver's pen.
struct Rig {
    memory: CellMemory<'static>,
    queue: Queue,
    available: u16,
}

impl Rig {
    fn new(indirect: bool, event_idx: bool) -> Self {
        let mut queue = Queue::new(SIZE);
        *queue.setup_mut().unwrap() = RingSetup {
            size: SIZE,
            descriptors: GuestAddr(DESCRIPTORS),
            driver: GuestAddr(AVAILABLE),
            device: GuestAddr(USED),
        };
        queue.enable(RingFeatures { indirect, event_idx }).unwrap();
        let ram = std::vec![0; 0x1_0000].leak();
        Self { memory: CellMemory::new(GuestAddr(0), ram), queue, available: 0 }
    }

    fn descriptor(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = table + u64::from(index) * 16;
        self.memory.write(GuestAddr(at), &addr.to_le_bytes()).unwrap();
        self.memory.write(GuestAddr(at + 8), &len.to_le_bytes()).unwrap();
        self.memory.write(GuestAddr(at + 12), &flags.to_le_bytes()).unwrap();
        self.memory.write(GuestAddr(at + 14), &next.to_le_bytes()).unwrap();
    }

    fn offer(&mut self, head: u16) {
        let at = AVAILABLE + 4 + u64::from(self.available % SIZE) * 2;
        self.memory.write(GuestAddr(at), &head.to_le_bytes()).unwrap();
        self.available = self.available.wrapping_add(1);
        self.set_available(self.available);
    }

    fn set_available(&self, index: u16) {
        self.memory.store_u16_release(GuestAddr(AVAILABLE + 2), index).unwrap();
    }

    fn peek(&mut self) -> Result<Option<u16>, QueueError> {
        self.queue.peek(&self.memory, &())
    }

    fn take(&mut self) -> u16 {
        let head = self.peek().unwrap().unwrap();
        self.queue.pop(&mut (), head);
        head
    }

    fn walk(&mut self, head: u16) -> Result<Vec<(u64, u32, bool)>, QueueError> {
        let mut seen = Vec::new();
        self.queue.walk(&self.memory, head, |b| seen.push((b.addr.0, b.len, b.writable)))?;
        Ok(seen)
    }

    fn complete_and_publish(&mut self, head: u16) -> bool {
        self.queue.add_used(&self.memory, &mut (), head, 1).unwrap();
        self.queue.publish(&self.memory, &mut ()).unwrap()
    }

    /// Asserts that a walk from descriptor 0 breaks the queue for good.
    fn breaks(&mut self, error: QueueError) {
        self.offer(0);
        assert_eq!(self.peek(), Ok(Some(0)));
        assert_eq!(self.walk(0), Err(error));
        assert_eq!(self.queue.error(), Some(error));
        assert_eq!(self.peek(), Ok(None), "a broken queue does nothing more");
        assert!(self.queue.setup_mut().is_none());
        self.queue.reset();
        assert_eq!(self.queue.error(), None);
    }
}

#[test]
fn a_chain_is_walked_in_order_and_stays_until_popped() {
    let mut rig = Rig::new(false, false);
    rig.descriptor(DESCRIPTORS, 3, 0x1000, 16, N, 5);
    rig.descriptor(DESCRIPTORS, 5, 0x2000, 512, N | W, 1);
    rig.descriptor(DESCRIPTORS, 1, 0x3000, 1, W, 7);
    rig.offer(3);
    let expected = std::vec![(0x1000, 16, false), (0x2000, 512, true), (0x3000, 1, true)];
    for _ in 0..2 {
        assert_eq!(rig.peek(), Ok(Some(3)));
        assert_eq!(rig.walk(3).unwrap(), expected);
    }
    rig.queue.pop(&mut (), 3);
    assert_eq!(rig.peek(), Ok(None));
    assert!(rig.complete_and_publish(3));
    let mut used = [0; 8];
    rig.memory.read(GuestAddr(USED + 4), &mut used).unwrap();
    assert_eq!(used, [3, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(rig.memory.load_u16_acquire(GuestAddr(USED + 2)), Ok(1));
}

#[test]
fn popping_without_a_chain_does_nothing() {
    let mut rig = Rig::new(false, false);
    rig.queue.pop(&mut (), 0);
    rig.offer(2);
    assert_eq!(rig.peek(), Ok(Some(2)));
}

// host-std/tests/defects.md, 20.
#[test]
fn a_descriptor_loop_is_cut_after_as_many_descriptors_as_the_ring_has() {
    let mut rig = Rig::new(false, false);
    rig.descriptor(DESCRIPTORS, 0, 0x1000, 16, N, 1);
    rig.descriptor(DESCRIPTORS, 1, 0x1000, 16, N, 0);
    rig.breaks(QueueError::TooLong);
}

// CVE-2016-6490: zero-length descriptors that never end.
#[test]
fn a_loop_of_zero_length_descriptors_ends() {
    let mut rig = Rig::new(true, false);
    rig.descriptor(DESCRIPTORS, 0, 0x1000, 0, N, 0);
    rig.breaks(QueueError::TooLong);

    let mut rig = Rig::new(true, false);
    rig.descriptor(DESCRIPTORS, 0, TABLE, 32, I, 0);
    rig.descriptor(TABLE, 0, 0x1000, 0, N | W, 1);
    rig.descriptor(TABLE, 1, 0x1000, 0, N | W, 0);
    rig.breaks(QueueError::TooLong);
}

#[test]
fn a_zero_length_descriptor_is_left_out() {
    let mut rig = Rig::new(false, false);
    rig.descriptor(DESCRIPTORS, 0, u64::MAX, 0, N | W, 1);
    rig.descriptor(DESCRIPTORS, 1, 0x1000, 16, 0, 0);
    assert_eq!(rig.walk(0).unwrap(), [(0x1000, 16, false)]);
}

// host-std/tests/defects.md, 20.
#[test]
fn an_indirect_table_is_walked_after_direct_descriptors() {
    let mut rig = Rig::new(true, false);
    rig.descriptor(DESCRIPTORS, 0, 0x1000, 16, N, 4);
    rig.descriptor(DESCRIPTORS, 4, TABLE, 48, I | W, 0);
    rig.descriptor(TABLE, 0, 0x2000, 512, N, 2);
    rig.descriptor(TABLE, 2, 0x3000, 1, W, 0);
    assert_eq!(rig.walk(0).unwrap(), [(0x1000, 16, false), (0x2000, 512, false), (0x3000, 1, true)]);
}

// host-std/tests/defects.md, 20.
#[test]
fn an_indirect_descriptor_out_of_order_breaks_the_queue() {
    let cases = [
        (Rig::new(false, false), 16, I, 0, QueueError::IndirectNotNegotiated),
        (Rig::new(true, false), 16, I | N, 0, QueueError::IndirectChained),
        (Rig::new(true, false), 0, I, 0, QueueError::IndirectLength),
        (Rig::new(true, false), 24, I, 0, QueueError::IndirectLength),
        (Rig::new(true, false), 16, I, I, QueueError::IndirectNested),
        (Rig::new(true, false), 16, I, N, QueueError::Next),
        (Rig::new(true, false), 0xffff_fff0, I, N, QueueError::TooLong),
    ];
    for (mut rig, len, flags, inner, error) in cases {
        rig.descriptor(DESCRIPTORS, 0, TABLE, len, flags, 1);
        let inner_next = if error == QueueError::TooLong { 0 } else { 1 };
        rig.descriptor(TABLE, 0, TABLE, 16, inner, inner_next);
        rig.breaks(error);
    }
}

#[test]
fn an_indirect_table_beyond_memory_or_2_to_the_64_breaks_the_queue() {
    for (addr, error) in [(0x1_0000, QueueError::Memory), (u64::MAX - 15, QueueError::Wraps)] {
        let mut rig = Rig::new(true, false);
        rig.descriptor(DESCRIPTORS, 0, addr, 32, I, 0);
        rig.breaks(error);
    }
}

// host-std/tests/defects.md, 20.
#[test]
fn a_buffer_whose_end_wraps_past_2_to_the_64_breaks_the_queue() {
    let mut rig = Rig::new(false, false);
    rig.descriptor(DESCRIPTORS, 0, u64::MAX - 15, 32, 0, 0);
    rig.breaks(QueueError::Wraps);
}

#[test]
fn a_readable_buffer_after_a_writable_one_breaks_the_queue() {
    let mut rig = Rig::new(false, false);
    rig.descriptor(DESCRIPTORS, 0, 0x1000, 1, N | W, 1);
    rig.descriptor(DESCRIPTORS, 1, 0x1000, 16, 0, 0);
    rig.breaks(QueueError::Order);
}

#[test]
fn a_next_outside_the_table_breaks_the_queue() {
    let mut rig = Rig::new(false, false);
    rig.descriptor(DESCRIPTORS, 0, 0x1000, 16, N, SIZE);
    rig.breaks(QueueError::Next);
}

#[test]
fn a_head_outside_the_table_breaks_the_queue() {
    let mut rig = Rig::new(false, false);
    rig.offer(SIZE);
    assert_eq!(rig.peek(), Err(QueueError::Head));
    assert_eq!(rig.queue.error(), Some(QueueError::Head));
}

#[test]
fn an_available_index_that_jumps_breaks_the_queue() {
    for index in [SIZE + 1, 0x8000, u16::MAX] {
        let mut rig = Rig::new(false, false);
        rig.set_available(index);
        assert_eq!(rig.peek(), Err(QueueError::AvailableIndex), "{index}");
    }
    let mut rig = Rig::new(false, false);
    rig.set_available(SIZE);
    assert_eq!(rig.peek(), Ok(Some(0)), "a full ring is in order");
}

// CVE-2016-5403.
#[test]
fn more_in_flight_than_the_ring_holds_breaks_the_queue() {
    let mut rig = Rig::new(false, false);
    for head in 0..SIZE {
        rig.offer(head);
        assert_eq!(rig.take(), head);
    }
    rig.offer(0);
    assert_eq!(rig.peek(), Err(QueueError::AvailableIndex));
}

#[test]
fn indices_run_on_past_2_to_the_16() {
    let mut rig = Rig::new(false, true);
    for turn in 0..70_000_u32 {
        let head = (turn % u32::from(SIZE)) as u16;
        // The driver wants to know about every one.
        rig.memory.store_u16_release(GuestAddr(AVAILABLE + 20), turn as u16).unwrap();
        rig.offer(head);
        assert_eq!(rig.take(), head);
        assert!(rig.complete_and_publish(head), "{turn}");
        assert_eq!(rig.memory.load_u16_acquire(GuestAddr(USED + 2)), Ok((turn + 1) as u16));
    }
}

#[test]
fn a_size_or_place_that_cannot_be_breaks_the_queue() {
    let good =
        RingSetup { size: 8, descriptors: GuestAddr(0), driver: GuestAddr(0x100), device: GuestAddr(0x200) };
    let cases = [
        (RingSetup { size: 0, ..good }, QueueError::Size),
        (RingSetup { size: 3, ..good }, QueueError::Size),
        (RingSetup { size: 16, ..good }, QueueError::Size),
        (RingSetup { descriptors: GuestAddr(8), ..good }, QueueError::Layout),
        (RingSetup { driver: GuestAddr(0x101), ..good }, QueueError::Layout),
        (RingSetup { device: GuestAddr(0x202), ..good }, QueueError::Layout),
        (RingSetup { descriptors: GuestAddr(u64::MAX - 15), ..good }, QueueError::Layout),
        (RingSetup { device: GuestAddr(u64::MAX - 63), ..good }, QueueError::Layout),
    ];
    for (setup, error) in cases {
        let mut queue = Queue::new(8);
        *queue.setup_mut().unwrap() = setup;
        assert_eq!(queue.enable(RingFeatures::default()), Err(error), "{setup:?}");
        assert_eq!(queue.error(), Some(error));
    }
    assert_eq!(Queue::new(0).size_max(), 1);
    assert_eq!(Queue::new(1000).size_max(), 512);
    assert_eq!(Queue::new(u16::MAX).size_max(), SIZE_MAX);
}

#[test]
fn a_ring_that_is_not_memory_breaks_the_queue() {
    let mut rig = Rig::new(false, false);
    rig.queue.reset();
    let setup = rig.queue.setup_mut().unwrap();
    (setup.size, setup.driver, setup.device) = (8, GuestAddr(0x2_0000), GuestAddr(0x3_0000));
    rig.queue.enable(RingFeatures::default()).unwrap();
    assert_eq!(rig.peek(), Err(QueueError::Memory));
}

#[test]
fn without_event_idx_the_drivers_flag_suppresses_interrupts() {
    let mut rig = Rig::new(false, false);
    assert!(!rig.queue.publish(&rig.memory, &mut ()).unwrap(), "nothing to publish");
    for (flag, expected) in [(0, true), (1, false)] {
        rig.memory.store_u16_release(GuestAddr(AVAILABLE), flag).unwrap();
        rig.offer(0);
        rig.take();
        assert_eq!(rig.complete_and_publish(0), expected);
    }
}

#[test]
fn with_event_idx_only_the_batch_that_passes_the_event_interrupts() {
    let mut rig = Rig::new(false, true);
    let used_event = GuestAddr(AVAILABLE + 4 + 2 * u64::from(SIZE));
    rig.memory.store_u16_release(used_event, 2).unwrap();
    for head in 0..5 {
        rig.offer(head);
        rig.take();
    }
    assert!(!rig.complete_and_publish(0));
    rig.queue.add_used(&rig.memory, &mut (), 1, 1).unwrap();
    rig.queue.add_used(&rig.memory, &mut (), 2, 1).unwrap();
    assert!(rig.queue.publish(&rig.memory, &mut ()).unwrap(), "one interrupt for the batch with entry 2");
    assert!(!rig.complete_and_publish(3));
    assert!(!rig.complete_and_publish(4));
}

// host-std/tests/defects.md, 19: lost wake-ups.
#[test]
fn rearming_finds_the_chain_that_came_before_the_driver_could_see_it() {
    let mut rig = Rig::new(false, true);
    let available_event = GuestAddr(USED + 4 + 8 * u64::from(SIZE));
    rig.offer(0);
    assert_eq!(rig.take(), 0);
    assert_eq!(rig.peek(), Ok(None));
    rig.offer(1);
    assert!(!rig.queue.has_fetched(&()));
    assert_eq!(rig.queue.enable_notification(&rig.memory), Ok(true));
    assert_eq!(rig.memory.load_u16_acquire(available_event), Ok(1));
    assert_eq!(rig.take(), 1);
    assert_eq!(rig.queue.enable_notification(&rig.memory), Ok(false));
    assert_eq!(rig.memory.load_u16_acquire(available_event), Ok(2), "notify me of entry 2");
}

/// A log in the test's own memory: what is in flight, oldest first, and what of it was begun again.
#[derive(Default)]
struct Log {
    in_flight: Vec<u16>,
    again: usize,
    batch: Vec<u16>,
    used: u16,
}

impl InflightTracker for Log {
    fn next_unfinished(&self) -> Option<u16> {
        self.in_flight.get(..self.again).and_then(|owed| owed.first()).copied()
    }

    fn resubmitted(&mut self) {
        let head = self.in_flight.remove(0);
        self.in_flight.push(head);
        self.again -= 1;
    }

    fn record_taken(&mut self, head: u16) {
        self.in_flight.push(head);
    }

    fn record_used(&mut self, head: u16) {
        self.batch.push(head);
    }

    fn published(&mut self, used: u16) {
        let batch = core::mem::take(&mut self.batch);
        self.in_flight.retain(|head| !batch.contains(head));
        self.used = used;
    }
}

#[test]
fn what_is_owed_comes_first_and_the_ring_goes_on_behind_it() {
    let mut rig = Rig::new(false, false);
    let mut log = Log::default();
    for head in 0..4 {
        rig.offer(head);
    }
    for head in 0..3 {
        assert_eq!(rig.queue.peek(&rig.memory, &log), Ok(Some(head)));
        rig.queue.pop(&mut log, head);
    }
    rig.queue.add_used(&rig.memory, &mut log, 1, 1).unwrap();
    rig.queue.publish(&rig.memory, &mut log).unwrap();
    assert_eq!((&*log.in_flight, log.used), (&[0, 2][..], 1));

    // The device is gone; another takes over from the log and the used index.
    let setup = *rig.queue.setup();
    rig.queue.reset();
    *rig.queue.setup_mut().unwrap() = setup;
    log.again = log.in_flight.len();
    let position = RingPosition { next_avail: log.used + 2, next_used: log.used };
    rig.queue.enable_at(RingFeatures::default(), position).unwrap();
    for head in [0, 2, 3] {
        assert!(rig.queue.has_fetched(&log) || head == 3);
        assert_eq!(rig.queue.peek(&rig.memory, &log), Ok(Some(head)));
        rig.queue.pop(&mut log, head);
    }
    assert_eq!(rig.queue.peek(&rig.memory, &log), Ok(None));
    for head in [3, 0, 2] {
        rig.queue.add_used(&rig.memory, &mut log, head, 1).unwrap();
    }
    rig.queue.publish(&rig.memory, &mut log).unwrap();
    assert_eq!((log.in_flight.len(), log.used), (0, 4));
    assert_eq!(rig.memory.load_u16_acquire(GuestAddr(USED + 2)), Ok(4));
    assert_eq!(rig.queue.position(), Some(RingPosition { next_avail: 4, next_used: 4 }));
}
