//! Units that come, go and are resized.

use blk_core::storage::Cache;
use scsi_model::front::virtio_scsi::wire::Features;
use scsi_model::front::virtio_scsi::{Controller, NotInserted, REQUEST};

use crate::machine::*;
use crate::rig::{AtOnce, BLOCK, Disk, TAGS};

const TRANSPORT_RESET: u32 = 1;
const PARAMETER_CHANGE: u32 = 3;
const RESCAN: u32 = 1;
const REMOVED: u32 = 2;
const MISSED: u32 = 1 << 31;
const REPORT_LUNS: [u8; 12] = [0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];

fn controller(machine: &mut Machine) -> &mut Controller<QUEUES, UNITS, TAGS> {
    machine.device.device_mut().controller_mut()
}

fn plug(machine: &mut Machine, target: u8, lun: u16) -> usize {
    let disk = Disk::new(Cache::WriteBack);
    let index = controller(machine).insert(at(target, lun), identity(), &disk.info).unwrap();
    if index == machine.disks.len() {
        machine.disks.push(disk);
    } else {
        machine.disks[index] = disk;
    }
    index
}

#[test]
fn a_unit_that_comes_is_announced_and_works() {
    let mut machine = Machine::new(&[at(0, 0), at(1, 0)]);
    machine.lend(16);
    let index = plug(&mut machine, 0, 5);
    assert_eq!(index, 2);
    assert_eq!(machine.event(), Some((TRANSPORT_RESET, listed(0, 5), RESCAN)));
    assert_eq!(machine.event(), None);
    assert_eq!(machine.command(lun(0, 5), &TEST_UNIT_READY, &[], 0).key(), (6, 0x2900));
    assert!(machine.command(lun(0, 5), &read10(0, 1), &[], BLOCK).is_good());
    assert_eq!(
        machine.command(lun(0, 0), &TEST_UNIT_READY, &[], 0).key(),
        (6, 0x3f0e),
        "REPORTED LUNS DATA HAS CHANGED"
    );
    assert_eq!(machine.data_in(lun(0, 0), &REPORT_LUNS, 256).len(), 8 + 16);
    assert!(machine.command(lun(1, 0), &TEST_UNIT_READY, &[], 0).is_good(), "another target");
}

#[test]
fn a_unit_that_goes_finishes_what_it_has() {
    let mut machine = Machine::new(&[at(0, 0), at(0, 1)]);
    machine.lend(16);
    machine.disks[1].held = true;
    let (sent, _) = machine.send(lun(0, 1), &write10(3, 1), &[1; BLOCK], 0);
    machine.poll();
    assert!(controller(&mut machine).remove(1));
    assert!(!controller(&mut machine).remove(1));
    assert_eq!(machine.event(), Some((TRANSPORT_RESET, listed(0, 1), REMOVED)));
    assert_eq!(machine.command(lun(0, 1), &TEST_UNIT_READY, &[], 0).key(), (5, 0x2500));
    assert!(controller(&mut machine).has_unit(1), "its handle is in use");
    machine.release(1);
    assert_eq!(machine.expect(sent).response, FAILURE);
    assert!(!controller(&mut machine).has_unit(1));
    assert_eq!(machine.command(lun(0, 0), &TEST_UNIT_READY, &[], 0).key(), (6, 0x3f0e));
    // The last one of a target takes it along.
    controller(&mut machine).remove(0);
    machine.poll();
    assert_eq!(machine.command(lun(0, 0), &TEST_UNIT_READY, &[], 0).response, BAD_TARGET);
    assert_eq!(plug(&mut machine, 3, 0), 0, "the place is free");
}

#[test]
fn a_resize_reaches_the_driver_twice() {
    let mut machine = Machine::new(&[at(0, 0), at(4, 2)]);
    machine.lend(16);
    machine.disks[1].info.sectors = 4096;
    assert_eq!(machine.sectors(1), 4096);
    assert_eq!(machine.event(), Some((PARAMETER_CHANGE, listed(4, 2), 0x092a)), "asc in the low byte");
    assert_eq!(machine.command(lun(4, 2), &TEST_UNIT_READY, &[], 0).key(), (6, 0x2a09));
    let capacity = machine.data_in(lun(4, 2), &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8);
    assert_eq!(capacity, [0, 0, 0x0f, 0xff, 0, 0, 2, 0]);
    assert!(machine.command(lun(0, 0), &TEST_UNIT_READY, &[], 0).is_good());
}

/// A storage takes another size over when it is polled: nobody else polls that of an idle unit, and the size that is taken over
/// while a unit is busy is an event all the same.
#[test]
fn a_resize_is_noticed_when_the_storage_takes_it_over() {
    for busy in [false, true] {
        let mut machine = Machine::new(&[at(0, 0)]);
        machine.lend(16);
        machine.disks[0].resized = Some(4096);
        if busy {
            let heard = machine.command(lun(0, 0), &read10(0, 1), &[], BLOCK);
            assert!(heard.is_good() || heard.key() == (6, 0x2a09));
        }
        assert_eq!(machine.event(), Some((PARAMETER_CHANGE, listed(0, 0), 0x092a)), "busy: {busy}");
        assert_eq!(machine.event(), None, "told once");
    }
}

/// Of commands that are taken together the next one hears of it, not the last.
#[test]
fn a_resize_between_two_commands_is_told_by_the_second() {
    let mut machine = Machine::new(&[at(0, 0)]);
    machine.disks[0].at_once = AtOnce::All;
    let sent = [0; 3].map(|_| machine.send(lun(0, 0), &read10(0, 1), &[], BLOCK).0);
    machine.disks[0].resized = Some(4096);
    let [first, second, third] = sent.map(|sent| machine.expect(sent));
    assert!(first.is_good() && third.is_good());
    assert_eq!(second.key(), (6, 0x2a09));
}

/// 5.6.6.3: the device keeps some events for want of buffers; of what it cannot keep it says that it is missing.
#[test]
fn events_wait_for_buffers_and_those_that_are_lost_are_missed() {
    let mut machine = Machine::new(&[at(0, 0)]);
    for sectors in 1..=20 {
        machine.disks[0].info.sectors = 2048 + sectors;
        assert_eq!(machine.event(), None);
    }
    for _ in 0..17 {
        machine.lend(16);
    }
    assert_eq!(machine.event(), Some((PARAMETER_CHANGE | MISSED, listed(0, 0), 0x092a)));
    for _ in 0..15 {
        assert_eq!(machine.event(), Some((PARAMETER_CHANGE, listed(0, 0), 0x092a)), "told once");
    }
    assert_eq!(machine.event(), None);
    machine.disks[0].info.sectors = 2048;
    assert_eq!(
        machine.event(),
        Some((PARAMETER_CHANGE, listed(0, 0), 0x092a)),
        "into the buffer that was left"
    );
}

#[test]
fn a_buffer_too_short_for_an_event_is_used_for_nothing() {
    let mut machine = Machine::new(&[at(0, 0)]);
    let short = machine.lend(15);
    machine.lend(16);
    machine.disks[0].info.sectors = 4096;
    machine.poll();
    assert_eq!(machine.reap(1).map(|(_, len)| len), Some(15));
    assert_eq!(machine.fetch(short, 4), [0; 4], "NO_EVENT");
    assert_eq!(machine.event(), Some((PARAMETER_CHANGE, listed(0, 0), 0x092a)));
    machine.lend(3);
    machine.disks[0].info.sectors = 2048;
    assert!(machine.is_broken(), "it holds nothing");
}

/// 5.6.6.3.2. The unit attentions come all the same.
#[test]
fn a_driver_is_told_only_what_it_asked_for() {
    let mut machine =
        Machine::fresh(&[at(0, 0)], features().difference(Features::CHANGE | Features::HOTPLUG));
    machine.lend(16);
    machine.disks[0].info.sectors = 4096;
    plug(&mut machine, 0, 1);
    assert_eq!(machine.event(), None);
    let mut heard = || machine.command(lun(0, 0), &TEST_UNIT_READY, &[], 0).key();
    assert_eq!([heard(), heard(), heard()], [(6, 0x2900), (6, 0x2a09), (6, 0x3f0e)]);
}

#[test]
fn what_happens_before_the_driver_is_there_is_no_event() {
    let mut machine = Machine::off(&[at(0, 0)]);
    plug(&mut machine, 0, 1);
    machine.bring_up(features());
    machine.lend(16);
    assert_eq!(machine.event(), None);
}

#[test]
fn a_unit_is_refused_where_there_is_one_or_no_room() {
    let mut machine = Machine::new(&[at(0, 0)]);
    let info = machine.disks[0].info;
    let mut insert = |address, info| controller(&mut machine).insert(address, identity(), &info);
    assert_eq!(insert(at(0, 0), info), Err(NotInserted::Address));
    assert_eq!(insert(at(0, 0x4000), info), Err(NotInserted::Address));
    let odd = blk_core::storage::Info { logical_block_bytes: 768, ..info };
    assert!(matches!(insert(at(0, 1), odd), Err(NotInserted::Geometry(_))));
    for lun in 1..UNITS as u16 {
        assert_eq!(insert(at(0, lun), info), Ok(usize::from(lun)));
    }
    assert_eq!(insert(at(0, 9), info), Err(NotInserted::Full));
    // A unit whose handle is not there is as good as absent.
    assert_eq!(machine.command(lun(0, 1), &TEST_UNIT_READY, &[], 0).key(), (5, 0x2500));
    assert_eq!(machine.reap(REQUEST), None);
}
