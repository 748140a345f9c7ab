//! The device's side of a split ring, against a driver that keeps an account and one that lies.

use std::collections::VecDeque;

use blk_core::units::GuestAddr;
use blk_core::virtq::{Buffer, Queue, QueueError, RingFeatures, SIZE_MAX};

use crate::memory::Memory;
use crate::program::{parse, seed};
use crate::ring::{Layout, Ring};
use crate::{choices, record};

/// Where the rings begin; below are buffers.
const RINGS: u64 = 0x4000;
const MEMORY_BYTES: usize = 0x6000;

record! {
    /// The ring: log2 of its entries, modulo 6, and EVENT_IDX, indirect descriptors.
    pub struct Setup { pub size: u8, pub features: u8, }
}

choices! {
    /// What the driver or the device does.
    pub enum Action {
        /// The driver makes a chain available.
        Offer {
            /// Buffers: low nibble readable, high nibble writable, modulo 4 each.
            buffers: u8,
            /// Lengths are made of this.
            len: u16,
            /// How many of them lie in an indirect table: none if 0.
            indirect: u8,
        },
        /// The device looks for a chain, walks and takes it.
        Take,
        /// The device looks, and leaves it.
        Peek,
        /// The device returns one of the chains that it has.
        Complete { which: u8, written: u32 },
        /// The device publishes what it returned.
        Publish,
        /// The device asks to be notified.
        Rearm,
        /// The driver takes what was returned.
        Collect,
        /// The driver sets the point where it wants to be interrupted, or wants it not at all.
        Wish { event: u16, silent: bool },
        /// The driver writes anything over its rings.
        Scribble { at: u16, value: u16 },
        /// The device breaks the queue.
        Break,
        /// The queue is reset and enabled with another setup, which may be out of order.
        Restart { size: u16, descriptors: u16, driver: u16, device: u16 },
    }
}

/// A chain that the driver offered.
#[derive(Clone, Debug)]
struct Chain {
    head: u16,
    buffers: Vec<Buffer>,
}

struct Rig {
    memory: Memory,
    queue: Queue,
    ring: Ring,
    features: RingFeatures,
    /// Whether the driver has kept to the rules.
    honest: bool,
    offered: VecDeque<Chain>,
    taken: Vec<Chain>,
    /// Returned, and not yet published; and published, not yet collected.
    returned: VecDeque<(Chain, u32)>,
    published: VecDeque<(Chain, u32)>,
    used: u16,
    event: u16,
    silent: bool,
}

/// Runs a program of [`Setup`] and [`Action`]s.
pub fn run(data: &[u8]) {
    let Some((setup, actions)) = parse::<Setup, Action>(data) else { return };
    let memory = Memory::new(MEMORY_BYTES);
    let layout = Layout::compact(RINGS, 1 << (setup.size % 6));
    let features = RingFeatures { event_idx: setup.features & 1 != 0, indirect: setup.features & 2 != 0 };
    let mut queue = Queue::new(64);
    *queue.setup_mut().expect("off") = layout.setup();
    assert_eq!(queue.enable(features), Ok(()));
    memory.lend(layout.device_area());
    let mut rig = Rig {
        ring: Ring::new(layout),
        memory,
        queue,
        features,
        honest: true,
        offered: VecDeque::new(),
        taken: Vec::new(),
        returned: VecDeque::new(),
        published: VecDeque::new(),
        used: 0,
        event: 0,
        silent: false,
    };
    for action in actions {
        let broken = rig.queue.error();
        rig.act(action);
        if rig.honest && !matches!(action, Action::Break) {
            assert_eq!(rig.queue.error(), broken, "an honest driver broke it by {action:?}");
        }
        if !matches!(action, Action::Break | Action::Restart { .. }) {
            assert!(
                broken.is_none() || rig.queue.error() == broken,
                "a broken queue stays so until it is reset"
            );
        }
    }
}

impl Rig {
    fn act(&mut self, action: Action) {
        match action {
            Action::Offer { buffers, len, indirect } => self.offer(buffers, len, indirect),
            Action::Take => self.look(true),
            Action::Peek => self.look(false),
            Action::Complete { which, written } => self.complete(which, written),
            Action::Publish => self.publish(),
            Action::Rearm => self.rearm(),
            Action::Collect => self.collect(),
            Action::Wish { event, silent } => {
                (self.event, self.silent) = (event, silent);
                self.ring.wish(&self.memory, event, silent);
            }
            Action::Scribble { at, value } => {
                self.lie();
                let ring_bytes = MEMORY_BYTES as u64 - RINGS;
                self.memory.put(RINGS + u64::from(at) % ring_bytes, &value.to_le_bytes());
            }
            Action::Break => {
                self.queue.break_with(QueueError::Unanswerable);
            }
            Action::Restart { size, descriptors, driver, device } => {
                self.lie();
                self.queue.reset();
                let setup = self.queue.setup_mut().expect("a reset queue is off");
                setup.size = size;
                // Most of the address space is reached by turning 16 bits: the lowest and the highest addresses.
                let addr = |value: u16| GuestAddr(u64::from(value).rotate_right(4));
                (setup.descriptors, setup.driver, setup.device) =
                    (addr(descriptors), addr(driver), addr(device));
                let enabled = self.queue.enable(self.features);
                assert_eq!(self.queue.error(), enabled.err());
            }
        }
    }

    /// From here on the driver's account is worth nothing.
    fn lie(&mut self) {
        self.honest = false;
        self.memory.unguard();
    }

    fn offer(&mut self, buffers: u8, len: u16, indirect: u8) {
        let (readable, writable) = (buffers % 4, (buffers >> 4) % 4);
        let buffer = |index: u8| {
            let len = u32::from(len.rotate_left(u32::from(index))) % 0x100;
            let addr = GuestAddr(u64::from(index) * 0x100);
            Buffer { addr, len, writable: index >= readable }
        };
        let buffers: Vec<Buffer> = (0..readable + writable).map(buffer).collect();
        let in_table = if self.features.indirect { usize::from(indirect % 8) } else { 0 };
        let Some(head) = self.ring.offer(&self.memory, &buffers, in_table) else { return };
        let buffers = buffers.into_iter().filter(|buffer| buffer.len != 0).collect();
        self.offered.push_back(Chain { head, buffers });
    }

    fn look(&mut self, take: bool) {
        let Ok(head) = self.queue.peek(&self.memory, &()) else { return };
        if self.honest && self.queue.is_running() {
            assert_eq!(head, self.offered.front().map(|chain| chain.head), "in order, and all of them");
        }
        let Some(head) = head else { return };
        let mut seen = Vec::new();
        let walked = self.queue.walk(&self.memory, head, |buffer| seen.push(buffer));
        assert!(seen.len() <= 2 * usize::from(SIZE_MAX), "walks are bounded");
        assert!(seen.is_sorted_by_key(|buffer| buffer.writable), "readable buffers come first");
        for buffer in &seen {
            assert!(buffer.len != 0 && buffer.addr.checked_add(u64::from(buffer.len)).is_some());
        }
        if self.honest {
            assert_eq!((walked, &seen), (Ok(()), &self.offered[0].buffers));
        }
        if take && walked.is_ok() {
            self.queue.pop(&mut (), head);
            let lied = Chain { head, buffers: seen };
            self.taken.push(self.offered.pop_front().filter(|_| self.honest).unwrap_or(lied));
        }
    }

    fn complete(&mut self, which: u8, written: u32) {
        if self.taken.is_empty() {
            return;
        }
        let chain = self.taken.remove(usize::from(which) % self.taken.len());
        let _ = self.queue.add_used(&self.memory, &mut (), chain.head, written);
        self.returned.push_back((chain, written));
    }

    fn publish(&mut self) {
        let news = self.returned.len() as u16;
        let before = self.used;
        let interrupt = self.queue.publish(&self.memory, &mut ());
        self.published.append(&mut self.returned);
        if self.honest && self.queue.is_running() {
            self.used = before.wrapping_add(news);
            let wished = (0..news).any(|n| before.wrapping_add(n) == self.event);
            let wished = if self.features.event_idx { wished } else { !self.silent };
            assert_eq!(interrupt, Ok(news != 0 && wished), "{before} + {news}, event {}", self.event);
            assert_eq!(self.ring.used_index(&self.memory), self.used);
        }
    }

    fn rearm(&mut self) {
        let more = self.queue.enable_notification(&self.memory);
        if self.honest && self.queue.is_running() {
            assert_eq!(more, Ok(!self.offered.is_empty()));
            if self.features.event_idx {
                let taken = self.ring.available_index().wrapping_sub(self.offered.len() as u16);
                assert_eq!(self.ring.available_event(&self.memory), taken, "notify at the very next chain");
            }
        }
    }

    fn collect(&mut self) {
        if !self.honest || !self.queue.is_running() {
            return;
        }
        while let Some((chain, written)) = self.published.pop_front() {
            assert_eq!(self.ring.collect(&self.memory), Some((chain.head, written)));
        }
        assert_eq!(self.ring.collect(&self.memory), None);
    }
}

/// Programs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let offer = |buffers, indirect| Action::Offer { buffers, len: 0x1234, indirect };
    let complete = |written| Action::Complete { which: 0, written };
    let round = [offer(0x11, 0), Action::Take, complete(1), Action::Publish, Action::Collect, Action::Rearm];
    let scribble = |at, value| Action::Scribble { at, value };
    let programs = [
        round.repeat(9),
        vec![
            offer(0x21, 3),
            offer(0x12, 2),
            Action::Rearm,
            Action::Peek,
            Action::Take,
            Action::Take,
            complete(7),
        ],
        [vec![Action::Wish { event: 2, silent: true }], round.repeat(4)].concat(),
        // A descriptor that is its own next.
        vec![offer(0x11, 0), scribble(12, 1), scribble(14, 0), Action::Take],
        // An available index that ran ahead.
        vec![scribble(16 * 16 + 2, 0x4000), Action::Take],
        // An indirect table within an indirect table.
        vec![offer(0x22, 2), scribble(12, 5), scribble(0x800 + 12, 4), Action::Take],
        vec![Action::Restart { size: 8, descriptors: 0x400, driver: 0x500, device: 0xf }, Action::Take],
    ];
    let setups = [0, 1, 2, 3].map(|features| Setup { size: 4, features });
    setups.iter().flat_map(|setup| programs.iter().map(move |program| seed(setup, program))).collect()
}
