//! Interrupts: the pin, which masks itself, and messages.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use blk_core::bus::Width;
use host_std::server::vfio_user::protocol::IrqFlags;
use host_std::testing::client::vfio_user::CONFIG;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_setfl};

use super::ahci::{ABAR, Ahci, INTX, MSI, MSIX, refused};
use super::{Disk, pattern};

const STATUS_INTERRUPT: u64 = 8;

fn counted(ahci: &Ahci) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(&ahci.irq, &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(_) => 0,
    }
}

/// Takes the interrupts of requests that are done. A message may come some time after the request that it is of.
fn quiet(ahci: &mut Ahci) {
    while ahci.client.wait(ahci.irq.as_fd(), Duration::from_millis(50)).unwrap() {
        let _ = counted(ahci);
    }
}

fn level(ahci: &mut Ahci) -> bool {
    ahci.client.read(CONFIG, 6, Width::Word).unwrap() & STATUS_INTERRUPT != 0
}

/// One signal for a level, another for each unmask while it lasts, and none after it.
#[test]
pub(crate) fn the_pin_masks_itself_with_each_signal() {
    let disk = Disk::new();
    let _served = disk.serve("");
    let mut ahci = Ahci::new(disk.connect(), INTX);
    ahci.write(0, &pattern(512, 1)).unwrap();
    assert!(!level(&mut ahci));
    quiet(&mut ahci);
    ahci.issue(0, 0, false, super::ahci::DATA, 512);
    assert!(ahci.client.wait(ahci.irq.as_fd(), super::PATIENCE).unwrap());
    assert!(level(&mut ahci));
    assert_eq!(counted(&ahci), 1);
    // Nothing more without an unmask, though the level is high.
    assert!(!ahci.client.wait(ahci.irq.as_fd(), Duration::from_millis(50)).unwrap());
    ahci.unmask();
    assert_eq!(counted(&ahci), 1, "signalled again, as the level is high");
    ahci.client.set_irqs(INTX, IrqFlags::NONE | IrqFlags::MASK, 0..1, &[], &[]).unwrap();
    ahci.client.set_irqs(INTX, IrqFlags::BOOL | IrqFlags::UNMASK, 0..1, &[0], &[]).unwrap();
    assert_eq!(counted(&ahci), 0, "still masked");
    ahci.client.set_irqs(INTX, IrqFlags::BOOL | IrqFlags::UNMASK, 0..1, &[1], &[]).unwrap();
    assert!(ahci.client.wait(ahci.irq.as_fd(), Duration::ZERO).unwrap());
    // The level drops before the client has looked: the signal is taken back.
    let pending = ahci.get(0x110);
    ahci.client.write(ABAR, 0x110, Width::Dword, pending.into()).unwrap();
    ahci.client.write(ABAR, 0x08, Width::Dword, 1).unwrap();
    assert!(!level(&mut ahci));
    assert_eq!(counted(&ahci), 0, "taken back");
    // And the next level is signalled without an unmask.
    ahci.issue(0, 0, false, super::ahci::DATA, 512);
    assert!(ahci.client.wait(ahci.irq.as_fd(), super::PATIENCE).unwrap());
    ahci.finish(1).unwrap();
}

/// The client has taken the signal, so that there is none to take back: the device does not wait for one.
#[test]
fn the_pin_is_taken_back_from_an_empty_eventfd_that_blocks() {
    let disk = Disk::new();
    let _served = disk.serve("");
    let mut ahci = Ahci::new(disk.connect(), INTX);
    ahci.irq = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let fds = [ahci.irq.as_fd()];
    ahci.client.set_irqs(INTX, IrqFlags::EVENTFD | IrqFlags::TRIGGER, 0..1, &[], &fds).unwrap();
    ahci.issue(0, 0, false, super::ahci::DATA, 512);
    assert!(ahci.client.wait(ahci.irq.as_fd(), super::PATIENCE).unwrap());
    assert_eq!(counted(&ahci), 1);
    let pending = ahci.get(0x110);
    ahci.client.write(ABAR, 0x110, Width::Dword, pending.into()).unwrap();
    ahci.client.write(ABAR, 0x08, Width::Dword, 1).unwrap();
    assert!(!level(&mut ahci));
}

/// The client makes it full, and wait, whenever the device has undone that.
#[test]
fn a_full_eventfd_that_waits_holds_up_neither_a_stop_nor_the_next_client() {
    for stop in [false, true] {
        let disk = Disk::new();
        let served = disk.serve("");
        let mut ahci = Ahci::new(disk.connect(), MSI);
        quiet(&mut ahci);
        rustix::io::write(&ahci.irq, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        fcntl_setfl(&ahci.irq, OFlags::empty()).unwrap();
        ahci.issue(0, 0, false, super::ahci::DATA, 512);
        std::thread::sleep(Duration::from_millis(50));
        let begun = Instant::now();
        if stop {
            served.stop().unwrap();
        } else {
            drop(ahci);
            disk.connect().device_info().unwrap();
        }
        assert!(begun.elapsed() < super::PATIENCE, "stop: {stop}: it took {:?}", begun.elapsed());
    }
}

#[test]
fn an_eventfd_that_comes_while_the_level_is_high_is_signalled_at_once() {
    let disk = Disk::new();
    let _served = disk.serve("");
    let mut ahci = Ahci::new(disk.connect(), INTX);
    ahci.client.set_irqs(INTX, IrqFlags::NONE | IrqFlags::TRIGGER, 0..0, &[], &[]).unwrap();
    ahci.issue(0, 0, false, super::ahci::DATA, 512);
    super::until("the level rises", || level(&mut ahci));
    assert_eq!(counted(&ahci), 0);
    let fds = [ahci.irq.as_fd()];
    ahci.client.set_irqs(INTX, IrqFlags::EVENTFD | IrqFlags::TRIGGER, 0..1, &[], &fds).unwrap();
    assert_eq!(counted(&ahci), 1);
    ahci.finish(1).unwrap();
}

#[test]
fn a_message_is_signalled_once_for_each_and_kept_while_there_is_no_eventfd() {
    let disk = Disk::new();
    let _served = disk.serve("");
    let mut ahci = Ahci::new(disk.connect(), MSI);
    ahci.read(0, 512).unwrap();
    quiet(&mut ahci);
    assert!(!level(&mut ahci), "the pin is not used");
    ahci.client.set_irqs(MSI, IrqFlags::EVENTFD | IrqFlags::TRIGGER, 0..1, &[], &[]).unwrap();
    ahci.issue(0, 0, false, super::ahci::DATA, 512);
    super::until("the read ends", || ahci.get(super::ahci::CI) == 0 && ahci.get(0x134) == 0);
    assert_eq!(counted(&ahci), 0);
    let fds = [ahci.irq.as_fd()];
    ahci.client.set_irqs(MSI, IrqFlags::EVENTFD | IrqFlags::TRIGGER, 0..1, &[], &fds).unwrap();
    assert_eq!(counted(&ahci), 1);
    // The client may ring by itself.
    ahci.client.set_irqs(MSI, IrqFlags::NONE | IrqFlags::TRIGGER, 0..1, &[], &[]).unwrap();
    assert_eq!(counted(&ahci), 1);
}

/// MSI-X: the port's own message, and no other. The HBA still says which port in IS, which needs no writing for the next message.
#[test]
fn each_port_has_its_message() {
    let disk = Disk::new();
    let _served = disk.serve("");
    let mut ahci = Ahci::new(disk.connect(), MSIX);
    let other = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let signal = IrqFlags::EVENTFD | IrqFlags::TRIGGER;
    for vector in 1..6 {
        ahci.client.set_irqs(MSIX, signal, vector..vector + 1, &[], &[other.as_fd()]).unwrap();
    }
    let data = pattern(4096, 3);
    ahci.write(8, &data).unwrap();
    assert_eq!(ahci.read(8, 4096).unwrap(), data);
    quiet(&mut ahci);
    for _ in 0..2 {
        ahci.issue(0, 0, false, super::ahci::DATA, 512);
        assert!(ahci.client.wait(ahci.irq.as_fd(), super::PATIENCE).unwrap());
        assert_eq!(counted(&ahci), 1);
        let pending = ahci.get(0x110);
        ahci.client.write(ABAR, 0x110, Width::Dword, pending.into()).unwrap();
    }
    assert!(rustix::io::read(&other, &mut [0; 8]).is_err(), "another port's message");
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let disk = Disk::new();
    let _served = disk.serve("");
    let mut client = disk.connect();
    let irq = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let fds = [irq.as_fd(), irq.as_fd()];
    let trigger = IrqFlags::TRIGGER;
    let big = 1..u32::MAX;
    for (index, flags, range, data, count) in [
        (INTX, IrqFlags::EVENTFD | trigger, 0..1, [].as_slice(), 2),
        (INTX, IrqFlags::EVENTFD | trigger, 0..2, &[], 2),
        (INTX, IrqFlags::EVENTFD | trigger, 1..2, &[], 1),
        (INTX, IrqFlags::EVENTFD | trigger, big.clone(), &[], 0),
        (INTX, IrqFlags::EVENTFD | IrqFlags::MASK, 0..1, &[], 1),
        (INTX, IrqFlags::EVENTFD, 0..1, &[], 1),
        (INTX, trigger, 0..1, &[], 0),
        (INTX, IrqFlags::NONE | IrqFlags::MASK | IrqFlags::UNMASK, 0..1, &[], 0),
        (INTX, IrqFlags::NONE | IrqFlags::BOOL | trigger, 0..1, &[1], 0),
        (INTX, IrqFlags::BOOL | trigger, 0..1, &[], 0),
        (INTX, IrqFlags::BOOL | trigger, 0..1, &[1, 1], 0),
        (INTX, IrqFlags::NONE | trigger, 0..1, &[1], 0),
        (INTX, IrqFlags::NONE | trigger, 0..1, &[], 1),
        (MSI, IrqFlags::NONE | IrqFlags::MASK, 0..1, &[], 0),
        (MSIX, IrqFlags::EVENTFD | trigger, 5..7, &[], 2),
        (3, IrqFlags::NONE | trigger, 0..0, &[], 0),
        (u32::MAX, IrqFlags::NONE | trigger, 0..0, &[], 0),
    ] {
        let result = client.set_irqs(index, flags, range.clone(), data, &fds[..count]);
        assert_eq!(refused(result), 22, "{index} {flags:?} {range:?} {data:?} {count}");
    }
    assert_eq!(client.irq_info(INTX).unwrap().count, 1);
    assert_eq!(client.irq_info(MSI).unwrap().count, 1);
    assert_eq!(client.irq_info(MSIX).unwrap().count, 6);
    assert_eq!(refused(client.irq_info(3)), 22);
}
