//! Registers, features, configuration space.

use blk_core::bus::{Quiet as _, Width};
use blk_core::virtio::mmio::register;
use scsi_model::front::virtio_scsi::wire::Features;
use scsi_model::front::virtio_scsi::{Config, Controller, Mmio, Policy, Scsi};

use crate::machine::*;
use crate::rig::{BLOCK, TAGS};

fn config(machine: &mut Machine, offset: u64) -> u32 {
    machine.get(register::CONFIG + offset)
}

#[test]
fn it_is_a_scsi_host_with_a_configuration_space() {
    let mut machine = Machine::new(&[at(0, 0)]);
    assert_eq!((machine.get(register::VERSION), machine.get(register::DEVICE_ID)), (2, 8));
    let space: Vec<u32> = (0..10).map(|word| config(&mut machine, 4 * word)).collect();
    // Queues, segments, sectors, commands, event, sense, command block, channel and target, LUN, and nothing.
    let tasks = TAGS as u32;
    assert_eq!(space, [2, 62, 128, tasks, 16, 96, 32, 255 << 16, 16383, 0]);
    assert_eq!(machine.read(register::CONFIG + 30, Width::Word), 255);
    assert_eq!(machine.read(u64::MAX - 3, Width::Dword), 0);
    machine.set(register::QUEUE_SEL, QUEUES as u32 + 2);
    assert_eq!(machine.get(register::QUEUE_SIZE_MAX), 0, "no more queues");
}

/// 5.6.4: of the configuration the driver may write the two sizes, and a reset restores them.
#[test]
fn only_the_sizes_are_writable_and_only_to_what_scsi_knows() {
    let mut machine = Machine::new(&[at(0, 0)]);
    for offset in (0..36).step_by(4) {
        machine.set(register::CONFIG + offset, 77);
    }
    assert_eq!((config(&mut machine, 20), config(&mut machine, 24)), (77, 77));
    assert_eq!((config(&mut machine, 0), config(&mut machine, 32)), (2, 16383));
    let _ = machine.write(register::CONFIG + 24, Width::Byte, 16);
    assert_eq!(config(&mut machine, 24), 16);
    for (offset, most) in [(20, 252), (24, 260)] {
        machine.set(register::CONFIG + offset, most);
        machine.set(register::CONFIG + offset, most + 1);
        machine.set(register::CONFIG + offset, u32::MAX);
        assert_eq!(config(&mut machine, offset), most);
    }
    machine.set(register::STATUS, 0);
    assert_eq!((config(&mut machine, 20), config(&mut machine, 24)), (96, 32));
}

#[test]
fn sizes_do_not_change_under_requests_in_flight() {
    let mut machine = Machine::new(&[at(0, 0)]);
    machine.disks[0].held = true;
    let (sent, _) = machine.send(lun(0, 0), &read10(3, 1), &[], BLOCK);
    machine.poll();
    machine.set(register::CONFIG + 20, 0);
    machine.release(0);
    assert_eq!(machine.expect(sent).used_len, 108 + 512);
    assert_eq!(machine.fetch(sent.data, BLOCK), [3; BLOCK]);
}

#[test]
fn features_that_are_not_offered_are_refused() {
    for (bits, accepted) in [
        (Features::VERSION_1.bits(), true),
        (Features::all().bits(), true),
        (Features::all().difference(Features::VERSION_1).bits(), false),
        (Features::all().bits() | 1, false),
        (Features::all().bits() | 1 << 3, false),
        (Features::all().bits() | 1 << 34, false),
    ] {
        let mut machine = Machine::off(&[at(0, 0)]);
        machine.set(register::STATUS, 3);
        for half in [0, 1] {
            machine.set(register::DRIVER_FEATURES_SEL, half);
            machine.set(register::DRIVER_FEATURES, (bits >> (32 * half)) as u32);
        }
        machine.set(register::STATUS, 11);
        assert_eq!(machine.get(register::STATUS), if accepted { 11 } else { 3 }, "{bits:#x}");
    }
    let mut machine = Machine::off(&[at(0, 0)]);
    machine.set(register::DEVICE_FEATURES_SEL, 0);
    assert_eq!(machine.get(register::DEVICE_FEATURES) & 0b1111, 0b0110, "neither INOUT nor T10_PI");
}

#[test]
fn nothing_is_taken_before_the_driver_is_ready() {
    let mut machine = Machine::off(&[at(0, 0)]);
    machine.bring_up(features());
    // A second life, without DRIVER_OK.
    machine.set(register::STATUS, 0);
    machine.set(register::STATUS, 3);
    machine.set(register::DRIVER_FEATURES_SEL, 1);
    machine.set(register::DRIVER_FEATURES, 1);
    machine.set(register::STATUS, 11);
    machine.set_up_ring(2);
    let (sent, _) = machine.send(lun(0, 0), &TEST_UNIT_READY, &[], 0);
    machine.poll();
    assert_eq!(machine.reap(2), None);
    machine.set(register::STATUS, 15);
    assert_eq!(machine.expect(sent).key(), (6, 0x2900));
}

#[test]
fn a_driver_with_event_indices_is_interrupted_when_it_wishes() {
    let mut machine = Machine::fresh(&[at(0, 0)], Features::all());
    let (sent, _) = machine.send(lun(0, 0), &TEST_UNIT_READY, &[], 0);
    machine.expect(sent);
    assert_eq!(machine.get(register::INTERRUPT_STATUS), 1, "used_event 0 was reached");
    machine.set(register::INTERRUPT_ACK, 1);
    let (sent, _) = machine.send(lun(0, 0), &TEST_UNIT_READY, &[], 0);
    assert!(machine.expect(sent).is_good());
    assert_eq!(machine.get(register::INTERRUPT_STATUS), 0, "and not reached again");
}

/// A ring that is to stop is closed: it takes no more, and gives back what it has.
#[test]
fn a_closed_ring_drains() {
    let mut machine = Machine::new(&[at(0, 0)]);
    machine.disks[0].held = true;
    let (sent, _) = machine.send(lun(0, 0), &write10(3, 1), &[1; BLOCK], 0);
    machine.poll();
    let (later, _) = machine.send(lun(0, 0), &TEST_UNIT_READY, &[], 0);
    let Machine { device, memory, disks, .. } = &mut machine;
    let controller: &mut Controller<QUEUES, UNITS, TAGS> = device.device_mut().controller_mut();
    let closed = Policy { features: features(), open: !(1 << 2) };
    controller.poll(memory, &mut disks[..], &closed, &mut [(); 4]);
    assert_eq!((controller.in_flight(2), controller.in_flight(3)), (1, 0));
    assert!(!controller.is_quiet());
    disks[0].release(memory, 0);
    controller.poll(memory, &mut disks[..], &closed, &mut [(); 4]);
    assert_eq!(controller.in_flight(2), 0);
    assert!(controller.is_quiet());
    let position = controller.ring(2).and_then(|ring| ring.position()).unwrap();
    assert_eq!(position.next_avail, position.next_used, "where a later device goes on");
    assert_eq!(machine.heads(2), [sent.head]);
    machine.poll();
    assert_eq!(machine.heads(2), [later.head]);
}

/// The device is plain data.
#[test]
fn a_device_in_mid_flight_survives_encoding() {
    let mut machine = Machine::new(&[at(0, 0), at(1, 3)]);
    machine.disks[0].held = true;
    let (sent, _) = machine.send(lun(0, 0), &read10(3, 1), &[], BLOCK);
    machine.poll();
    let bytes = postcard::to_allocvec(&machine.device).unwrap();
    let restored: Mmio<QUEUES, UNITS, TAGS> = postcard::from_bytes(&bytes).unwrap();
    assert_eq!(restored, machine.device);
    machine.device = restored;
    machine.release(0);
    assert!(machine.expect(sent).is_good());
    assert_eq!(Mmio::<1, 1, 1>::new(Scsi::new(Config::default())).device().controller().ring_count(), 3);
}

/// A static needs no stack to be made, and a unit is put into it where it is.
#[test]
fn a_controller_and_a_unit_are_made_in_constants() {
    use scsi_model::front::virtio_scsi::{Config, Scsi};
    use scsi_model::{LogicalUnit, Unsupported};

    const UNIT: LogicalUnit<4> = LogicalUnit::off(scsi_model::Config::new("BLK", "disk", "1", "S"));
    static SCSI: std::sync::Mutex<Scsi<1, 2, 4>> = std::sync::Mutex::new(Scsi::new(Config::DEFAULT));

    let disk = crate::rig::Disk::new(blk_core::storage::Cache::WriteBack);
    let mut unit = UNIT;
    assert_eq!(unit.power_on(&disk.info), Ok(()));
    assert!(unit.write_cache());
    let odd = blk_core::storage::Info { logical_block_bytes: 1000, ..disk.info };
    assert_eq!(unit.power_on(&odd), Err(Unsupported));
    let mut scsi = SCSI.lock().unwrap();
    assert_eq!(scsi.controller_mut().insert(at(0, 0), identity(), &disk.info), Ok(0));
    assert!(scsi.controller().has_unit(0) && !scsi.controller().has_unit(1));
}
