//! Interrupts by pin and by message, and what a driver is told.

use blk_core::bus::Width;
use virtio_blk_model::front::mmio::register;
use virtio_blk_model::front::pci::{ISR_CONFIG, ISR_QUEUE, NO_VECTOR, common as field, structure};

use crate::common::*;
use crate::{unmask, up, up_with_messages};

#[test]
fn a_driver_lives_on_the_pin() {
    let mut machine = up::<1>();
    assert_eq!(machine.read(field::NUM_QUEUES, Width::Word), 1);
    assert_eq!(machine.config(0, Width::Qword), SECTORS);
    assert_eq!(machine.request(IN, 3, &[(DATA, 512, WRITE)]), (OK, 513));
    assert_eq!(machine.fetch(DATA, 512), [3; 512]);
    assert!(machine.line && machine.messages.is_empty());
    assert_ne!(machine.configuration(6, Width::Word) & 1 << 3, 0, "STATUS says so too");
    assert_eq!(machine.get(register::INTERRUPT_STATUS), ISR_QUEUE.into());
    assert!(!machine.line, "reading takes it away");
    assert_eq!(machine.get(register::INTERRUPT_STATUS), 0);
    machine.put(DATA, &[9; 512]);
    assert_eq!(machine.request(OUT, 3, &[(DATA, 512, 0)]), (OK, 1));
    assert_eq!(machine.disks[0].data[3 * 512], 9);
}

#[test]
fn each_event_has_the_vector_that_it_was_given() {
    let mut machine = up_with_messages::<2>(0, [1, 2]);
    machine.request(IN, 3, &[(DATA, 512, WRITE)]);
    assert_eq!(machine.messages, [1]);
    assert!(!machine.line && machine.get(register::INTERRUPT_STATUS) == 0, "ISR status is unused");
    machine.messages.clear();
    machine.header(HEADER, IN, 1);
    machine.offer(1, &[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
    machine.poll();
    assert_eq!(machine.messages, [2]);
    machine.messages.clear();
    machine.disks[0].info.sectors += 8;
    machine.poll();
    assert_eq!(machine.messages, [0]);
}

#[test]
fn events_share_a_vector_and_an_event_without_one_is_not_told() {
    let mut machine = up_with_messages::<2>(1, [1, NO_VECTOR]);
    machine.header(HEADER, IN, 1);
    machine.offer(1, &[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
    machine.poll();
    assert!(machine.reap(1).is_some() && machine.messages.is_empty() && !machine.line);
    machine.disks[0].info.sectors += 8;
    machine.request(IN, 3, &[(DATA, 512, WRITE)]);
    assert_eq!(machine.messages, [1], "one message for both");
}

#[test]
fn a_masked_vectors_message_waits_until_it_is_unmasked() {
    let mut machine = up_with_messages::<1>(0, [1]);
    unmask(&mut machine, 1, false);
    machine.request(IN, 3, &[(DATA, 512, WRITE)]);
    assert!(machine.messages.is_empty());
    assert_eq!(machine.read(structure::MSIX_PENDING, Width::Qword), 0b10);
    unmask(&mut machine, 1, true);
    assert_eq!(machine.messages, [1]);
}

#[test]
fn a_vector_that_there_is_not_is_refused() {
    let mut machine = up_with_messages::<1>(0, [1]);
    for (register, vector) in [(field::CONFIG_MSIX_VECTOR, 2), (field::QUEUE_MSIX_VECTOR, 0x7ff)] {
        machine.poke(register, Width::Word, vector);
        assert_eq!(machine.read(register, Width::Word), NO_VECTOR.into());
    }
    machine.set(register::QUEUE_SEL, 1);
    machine.poke(field::QUEUE_MSIX_VECTOR, Width::Word, 1);
    assert_eq!(machine.read(field::QUEUE_MSIX_VECTOR, Width::Word), NO_VECTOR.into(), "no such queue");
}

#[test]
fn a_resize_is_told_and_is_a_new_generation() {
    let mut machine = up::<1>();
    machine.config(0, Width::Qword);
    let first = machine.get(register::CONFIG_GENERATION);
    // As often as would bring an 8-bit counter round.
    for _ in 0..256 {
        machine.disks[0].info.sectors += 8;
        machine.poll();
    }
    assert!(machine.line);
    assert_eq!(machine.get(register::INTERRUPT_STATUS), ISR_CONFIG.into());
    machine.config(0, Width::Dword);
    let second = machine.get(register::CONFIG_GENERATION);
    assert_ne!(second, first, "a driver that reads on finds out");
    machine.config(4, Width::Dword);
    assert_eq!(machine.get(register::CONFIG_GENERATION), second, "and then it is at rest");
    machine.poll();
    assert!(!machine.line, "told once");
}

#[test]
fn a_broken_queue_is_told_as_a_change_of_the_configuration() {
    let mut machine = up_with_messages::<1>(0, [1]);
    machine.offer_head(0, RING);
    machine.poll();
    assert_eq!((machine.get(register::STATUS), &machine.messages[..]), (15 | 64, &[0][..]));
    assert_eq!(machine.read(structure::ISR, Width::Byte), ISR_CONFIG.into(), "4.1.4.5.1: with MSI-X too");
}
