//! Registers: selectors, widths, and what is none.

use blk_core::bus::{Region, Width, WriteStatus};
use blk_core::op::Op;
use virtio_blk_model::front::mmio::register;
use virtio_blk_model::front::pci::{common as field, structure};
use virtio_blk_model::wire::Features;

use crate::common::*;
use crate::{WRITEBACK, off, up};

const WIDTHS: [Width; 4] = [Width::Byte, Width::Word, Width::Dword, Width::Qword];

#[test]
fn the_cache_is_switched_through_the_device_structure() {
    let mut machine = up::<1>();
    assert_eq!(machine.config(WRITEBACK, Width::Byte), 1);
    assert_eq!(machine.write(structure::DEVICE + WRITEBACK, Width::Byte, 0), WriteStatus::Pending);
    assert!(!machine.poll().pending_write);
    assert_eq!((machine.config(WRITEBACK, Width::Byte), machine.log()), (0, vec![Op::Flush]));
}

#[test]
fn what_a_selector_does_not_reach_reads_as_0_and_is_not_written() {
    let mut machine = up::<1>();
    for half in [2, u32::MAX] {
        machine.set(register::DEVICE_FEATURES_SEL, half);
        machine.set(register::DRIVER_FEATURES_SEL, half);
        machine.set(register::DRIVER_FEATURES, u32::MAX);
        assert_eq!((machine.get(register::DEVICE_FEATURES), machine.get(register::DRIVER_FEATURES)), (0, 0));
    }
    for queue in [1, 64, 0xffff] {
        machine.set(register::QUEUE_SEL, queue);
        let registers = field::QUEUE_SIZE..field::QUEUE_NOTIFY_OFF;
        for register in registers.step_by(2).filter(|register| *register != field::QUEUE_MSIX_VECTOR) {
            machine.poke(register, Width::Word, 1);
            assert_eq!(machine.read(register, Width::Word), 0, "{register:#x} of {queue}");
        }
        machine.poke(field::QUEUE_RESET, Width::Word, 1);
        machine.poke(field::QUEUE_DESC, Width::Qword, 0x1000);
        assert_eq!(machine.read(field::QUEUE_DESC, Width::Qword), 0);
    }
    assert_eq!(machine.request(IN, 3, &[(DATA, 512, WRITE)]), (OK, 513), "the queue that there is");
}

#[test]
fn features_are_seen_in_halves_and_as_they_were_written() {
    let mut machine = off::<1>();
    let offered = machine.offered();
    assert!(offered.contains(Features::VERSION_1 | Features::RING_RESET | Features::FLUSH));
    machine.accept((Features::VERSION_1 | Features::FLUSH).bits());
    for (half, bits) in [(0, 1 << 9), (1, 1)] {
        machine.set(register::DRIVER_FEATURES_SEL, half);
        assert_eq!(machine.get(register::DRIVER_FEATURES), bits);
    }
}

/// 4.1.3.1: 64-bit registers are two of 32 bits. Some drivers write them whole.
#[test]
fn addresses_are_written_in_halves_or_whole() {
    let mut machine = off::<1>();
    for register in [field::QUEUE_DESC, field::QUEUE_DRIVER, field::QUEUE_DEVICE] {
        machine.poke(register, Width::Qword, 0x1122_3344_5566_7788);
        machine.poke(register + 4, Width::Dword, 0xaabb_ccdd);
        assert_eq!(machine.read(register, Width::Qword), 0xaabb_ccdd_5566_7788);
        machine.poke(register, Width::Dword, 0xffff_ffff_0000_0010);
        assert_eq!(machine.read(register, Width::Dword), 0x10);
        assert_eq!(machine.read(register + 4, Width::Dword), 0xaabb_ccdd);
        for (offset, width) in [(0, Width::Word), (2, Width::Dword), (4, Width::Qword), (1, Width::Byte)] {
            machine.poke(register + offset, width, 0);
            assert_eq!(machine.read(register + offset, width), 0, "{offset} {width:?}");
        }
        assert_eq!(machine.read(register, Width::Qword), 0xaabb_ccdd_0000_0010);
    }
}

#[test]
fn a_size_is_a_power_of_two_within_what_was_offered_or_none_and_1_enables() {
    let mut machine = off::<1>();
    machine.set(register::STATUS, 3);
    for (size, held) in [(8, 8), (12, 0), (1, 1), (RING * 2, 0), (0, 0), (RING, RING)] {
        machine.set(register::QUEUE_SIZE, size.into());
        assert_eq!(machine.get(register::QUEUE_SIZE), held.into());
    }
    machine.set(register::QUEUE_SIZE, 12);
    for neither in [0, 2, 0xffff] {
        machine.set(register::QUEUE_READY, neither);
        assert_eq!(machine.get(register::QUEUE_READY), 0);
    }
    machine.set(register::QUEUE_READY, 1);
    machine.poll();
    assert_eq!(machine.get(register::STATUS), 3 | 64, "a queue without a size cannot be");
}

/// Accesses of any width anywhere: what is no register reads as 0, and changes nothing.
#[test]
fn only_registers_of_their_width_are_taken() {
    let mut machine = up::<1>();
    let wide = |offset: u64| match offset {
        0x14 | 0x15 => Width::Byte,
        0x00..0x10 | 0x20..0x38 => Width::Dword,
        _ => Width::Word,
    };
    let before = machine.device.clone();
    let odd = (0..0x60).chain(0xfff..0x1004).chain(0x2ffe..0x3108).chain(0x5008..0x5020);
    for offset in odd.chain([structure::END - 1, structure::END, u64::from(u32::MAX), u64::MAX]) {
        for width in WIDTHS {
            let whole = (0x20..0x38).contains(&offset) && offset % 8 == 0 && width == Width::Qword;
            let aligned = offset % u64::from(width.bytes()) == 0;
            let register = offset < field::BYTES && aligned && wide(offset) == width || whole;
            if register || offset == structure::ISR {
                continue;
            }
            if !(structure::DEVICE..structure::NOTIFY).contains(&offset) {
                assert_eq!(machine.read(offset, width), 0, "{offset:#x} {width:?}");
            }
            assert_eq!(machine.write(offset, width, u64::MAX), WriteStatus::Done);
            assert_eq!(machine.device, before, "{offset:#x} {width:?}");
        }
    }
    for register in [field::DEVICE_FEATURE, field::NUM_QUEUES, field::CONFIG_GENERATION, 0x1e, 0x38] {
        machine.poke(register, wide(register), u64::MAX);
        assert_eq!(machine.device, before, "{register:#x} is read-only");
    }
}

/// An embedder that has no BAR but the one: other regions are empty.
#[test]
fn other_regions_are_empty() {
    let mut machine = up::<1>();
    let before = machine.device.clone();
    for bar in [1, 2, 5, 6, 255] {
        assert_eq!(machine.load(Region::Bar(bar), field::DEVICE_STATUS, Width::Byte), 0xff);
        let _ = machine.store(Region::Bar(bar), field::DEVICE_STATUS, Width::Byte, 0);
    }
    assert_eq!(machine.device, before);
}
