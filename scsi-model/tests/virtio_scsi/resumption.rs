//! A controller that is killed, and one that comes after it.

use std::collections::VecDeque;

use blk_core::memory::GuestMemory as _;
use blk_core::storage::Cache;
use blk_core::units::GuestAddr;
use blk_core::virtq::{InflightTracker, RingFeatures, RingPosition, RingSetup};
use scsi_model::Setting;
use scsi_model::front::virtio_scsi::{Config, Controller, Policy, REQUEST};

use crate::machine::*;
use crate::rig::{BLOCK, Disk, Memory, TAGS};

/// A log as a server keeps it in shared memory.
#[derive(Clone, Debug, Default)]
struct Log {
    in_flight: Vec<(u16, u8)>,
    owed: VecDeque<u16>,
    batch: Vec<u16>,
}

impl Log {
    /// As the next process finds it.
    fn inherited(&self) -> Self {
        let owed = self.in_flight.iter().map(|(head, _)| *head).collect();
        Self { owed, batch: Vec::new(), ..self.clone() }
    }
}

impl InflightTracker for Log {
    fn next_unfinished(&self) -> Option<u16> {
        self.owed.front().copied()
    }

    fn resubmitted(&mut self) {
        self.owed.pop_front();
    }

    fn record_taken(&mut self, head: u16) {
        self.in_flight.push((head, 0));
    }

    fn stage(&self, head: u16) -> u8 {
        self.in_flight.iter().find(|(at, _)| *at == head).map_or(0, |(_, stage)| *stage)
    }

    fn set_stage(&mut self, head: u16, stage: u8) {
        self.in_flight.iter_mut().find(|(at, _)| *at == head).unwrap().1 = stage;
    }

    fn record_used(&mut self, head: u16) {
        self.batch.push(head);
    }

    fn published(&mut self, _: u16) {
        let batch = std::mem::take(&mut self.batch);
        self.in_flight.retain(|(head, _)| !batch.contains(head));
    }
}

type Served = Controller<QUEUES, UNITS, TAGS>;

/// A controller over the machine's rings, as a server makes one for a guest that knows nothing of it.
fn restart(machine: &Machine, position: RingPosition, setting: Setting) -> Served {
    let mut controller = Served::new(Config { queues: 2, queue_size_max: RING });
    controller.insert(at(0, 0), identity(), &machine.disks[0].info).unwrap();
    controller.resume(0, setting);
    let base = REQUEST as u64 * 0x1000;
    let ring = controller.ring_mut(REQUEST).unwrap();
    *ring.setup_mut().unwrap() = RingSetup {
        size: RING,
        descriptors: GuestAddr(base),
        driver: GuestAddr(base + 0x400),
        device: GuestAddr(base + 0x500),
    };
    ring.enable_at(RingFeatures::default(), position).unwrap();
    controller
}

fn poll(controller: &mut Served, memory: &Memory, disks: &mut [Disk], logs: &mut [Log]) {
    while controller.poll(memory, disks, &Policy::open(features()), logs).again {}
}

/// The data that COMPARE AND WRITE compares with, and the data that it writes.
const COMPARE_AND_WRITE: [u8; 16] = [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0];

/// Kills the server at each point of a COMPARE AND WRITE; the guest sees one success, and no miscompare with its own data.
#[test]
fn a_compare_and_write_survives_a_kill_at_any_point() {
    for steps in 0..=7 {
        let mut machine = Machine::new(&[at(0, 0)]);
        let base = REQUEST as u64 * 0x1000 + 0x500;
        let used = machine.memory.load_u16_acquire(GuestAddr(base + 2)).unwrap();
        let position = RingPosition { next_avail: used, next_used: used };
        let mut logs = vec![Log::default(); 4];
        let mut first = restart(&machine, position, Setting::WRITE_CACHE);
        let data = [[3; BLOCK], [0x55; BLOCK]].concat();
        let (sent, _) = machine.send(lun(0, 0), &COMPARE_AND_WRITE, &data, 0);
        machine.disks[0].held = true;
        for step in 0..steps {
            match step {
                // Taken; held; compared; written.
                0 | 2 | 4 | 6 => poll(&mut first, &machine.memory, &mut machine.disks, &mut logs),
                _ => machine.disks[0].release(&machine.memory, 0),
            }
        }
        drop(first);
        let answered = steps == 7;
        assert_eq!(machine.disks[0].bytes[3 * BLOCK] == 0x55, steps >= 6, "{steps}");
        // Whatever the dead process had submitted ends before its lock on the image does.
        let bytes = std::mem::take(&mut machine.disks[0].bytes);
        machine.disks[0] = Disk::new(Cache::WriteBack);
        machine.disks[0].bytes = bytes;
        let used = machine.memory.load_u16_acquire(GuestAddr(base + 2)).unwrap();
        let mut logs: Vec<Log> = logs.iter().map(Log::inherited).collect();
        let owed = logs[REQUEST].in_flight.len() as u16;
        assert_eq!(owed, u16::from(steps >= 1 && !answered));
        let position = RingPosition { next_avail: used.wrapping_add(owed), next_used: used };
        let mut second = restart(&machine, position, Setting::WRITE_CACHE);
        poll(&mut second, &machine.memory, &mut machine.disks, &mut logs);
        let (head, used_len) = machine.reap(REQUEST).expect("it is answered");
        assert_eq!((head, machine.reap(REQUEST)), (sent.head, None), "once");
        assert!(machine.answer(sent, used_len).is_good(), "{steps}: {:?}", machine.answer(sent, used_len));
        assert_eq!(machine.disks[0].bytes[3 * BLOCK..4 * BLOCK], [0x55; BLOCK]);
        assert_eq!(logs[REQUEST].in_flight, []);
    }
}

/// What the guest has set, and nothing that it has not done, is there after a restart.
#[test]
fn the_guest_s_setting_survives_and_no_power_on_is_reported() {
    let mut machine = Machine::new(&[at(0, 0)]);
    let mut select = [0; 16];
    // Control mode page with D_SENSE.
    (select[4], select[5], select[6], select[7]) = (0x0a, 0x0a, 0x06, 0x10);
    assert!(machine.command(lun(0, 0), &[0x15, 0x10, 0, 0, 16, 0], &select, 0).is_good());
    let mut caching = [0; 24];
    (caching[4], caching[5]) = (0x08, 0x12);
    assert!(machine.command(lun(0, 0), &[0x15, 0x10, 0, 0, 24, 0], &caching, 0).is_good());
    let controller = machine.device.device().controller();
    let setting = controller.setting(0).unwrap();
    assert_eq!(setting, Setting::DESCRIPTOR_SENSE);
    let position = controller.ring(REQUEST).unwrap().position().unwrap();
    let mut later = restart(&machine, position, Setting::from_bits_truncate(setting.bits()));
    assert!(!later.unit(0).unwrap().write_cache());
    let (sent, _) = machine.send(lun(0, 0), &[0xff; 6], &[], 0);
    poll(&mut later, &machine.memory, &mut machine.disks, &mut vec![Log::default(); 4]);
    let (_, used_len) = machine.reap(REQUEST).unwrap();
    assert_eq!(
        machine.answer(sent, used_len).sense[..4],
        [0x72, 5, 0x20, 0],
        "descriptors, and no unit attention"
    );
    // A reset that the guest does not know of: a new connection of the machine's.
    later.reset();
    assert!(later.finish_reset(&machine.memory, &mut machine.disks[..]));
    assert!(later.unit(0).unwrap().write_cache(), "the default");
    later.resume(0, setting);
    assert!(!later.unit(0).unwrap().write_cache());
}
