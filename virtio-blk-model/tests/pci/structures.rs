//! What the function is, and where its structures are.

use blk_core::bus::Width;
use blk_core::sim::Bench as _;
use virtio_blk_model::front::mmio::register;
use virtio_blk_model::front::pci::common as field;

use crate::{capability, off, structure_of};

#[test]
fn the_function_is_a_modern_block_device() {
    let mut machine = off::<1>();
    assert_eq!(machine.configuration(0, Width::Dword), 0x1042_1af4);
    assert_eq!(machine.configuration(8, Width::Dword), 0x0100_0001, "SCSI storage controller, revision 1");
    assert_eq!(machine.configuration(0x2c, Width::Dword), 0x1042_1af4);
    assert_eq!(machine.configuration(0x3d, Width::Byte), 1);
}

/// As Linux walks and maps it (`vp_modern_probe`, `vp_modern_map_capability`): type, alignment, least bytes.
#[test]
fn the_structures_are_found_as_linux_finds_them() {
    let mut machine = off::<1>();
    machine.configure(0x10, Width::Qword, u64::MAX);
    let size = !(machine.configuration(0x10, Width::Qword) & !0xf) + 1;
    let msix = capability(&mut machine, 0x11, |_, _| true).unwrap();
    assert_eq!(machine.configuration(msix + 2, Width::Word), 1, "a vector for the queue, one for changes");
    let table = machine.configuration(msix + 4, Width::Dword);
    assert_eq!(table & 7, 0);
    let mut taken = vec![(table & !7, 32), (machine.configuration(msix + 8, Width::Dword) & !7, 8)];
    for (kind, align, least) in [(1, 4, 56), (2, 2, 2), (3, 1, 1), (4, 4, 60)] {
        let at = structure_of(&mut machine, kind);
        assert_eq!(machine.configuration(at + 4, Width::Byte), 0, "the BAR");
        let offset = machine.configuration(at + 8, Width::Dword);
        let length = machine.configuration(at + 12, Width::Dword);
        assert!(offset.is_multiple_of(align) && length >= least && offset + length <= size, "{kind}");
        taken.push((offset, length));
    }
    taken.sort_unstable();
    assert!(taken.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{taken:?}");
    let notify = structure_of(&mut machine, 2);
    let multiplier = machine.configuration(notify + 16, Width::Dword);
    let length = machine.configuration(notify + 12, Width::Dword);
    assert!(machine.configuration(notify + 2, Width::Byte) >= 20 && multiplier == 4);
    for queue in [0, 1, 63, 0xffff] {
        machine.set(register::QUEUE_SEL, queue);
        assert!(machine.read(field::QUEUE_NOTIFY_OFF, Width::Word) * multiplier + 2 <= length);
    }
    let window = structure_of(&mut machine, 5);
    assert!(machine.configuration(window + 2, Width::Byte) >= 20);
}
