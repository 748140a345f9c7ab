//! The HBA and the IDE controller as PCI functions: identity, registers, interrupts, and a bus master that is switched off.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::unreachable
)]

mod rig;

use ata_model::{PciAhci, PciIde, PciIdeChip, PciIdeMode};
use blk_core::bus::Width;
use blk_core::pci::{Bar, Capability, Endpoint as _, MsixOwner, PciFunction};
use blk_core::storage::Cache;
use rig::ahci::*;
use rig::{BUS_MASTER, COMMAND, IO, Ide, MEMORY, READY, Rig, cmd, drive, ide, one_drive, pattern};

const INTX_DISABLE: u64 = 1 << 10;
const WRITE_DMA: u8 = 0xca;
const READ_DMA: u8 = 0xc8;

fn function(chip: PciIdeChip, mode: PciIdeMode) -> Ide {
    let device = PciIde::new([drive(0), None, drive(2), None], chip, mode);
    Rig::new(PciFunction::new(device, MsixOwner::Function), Cache::WriteBack)
}

/// What sizing a BAR finds: its low bits, and how many bytes it decodes.
fn size<D>(rig: &mut Rig<D>, bar: u64) -> (u64, u64)
where
    D: blk_core::bus::Device<rig::Memory, [rig::TestDisk]>,
{
    let at = 0x10 + 4 * bar;
    rig.set_config(at, Width::Dword, 0xffff_ffff);
    let found = rig.config(at, Width::Dword);
    let flags = if found & 1 != 0 { 3 } else { 15 };
    (found & flags, (!(found & !flags)).wrapping_add(1) & 0xffff_ffff)
}

#[test]
fn an_ahci_function_is_an_ich9() {
    let mut rig = cold(Cache::WriteBack);
    assert_eq!(rig.config(0, Width::Dword), 0x2922_8086);
    assert_eq!(rig.config(8, Width::Dword) >> 8, 0x01_0601);
    assert_eq!(rig.config(0x3d, Width::Byte), 1);
    assert_eq!((size(&mut rig, 5), size(&mut rig, 4)), ((0, 4096), (1, 32)));
    assert_eq!(PciAhci::<32>::BAR_BYTES, 8192);
    let sata = rig.capability(0x12);
    assert_eq!(rig.config(sata + 4, Width::Dword), 0x48, "the index-data pair is in BAR 4, at 10h");
    let (msi, _) = (rig.capability(0x05), rig.capability(0x01));
    assert_eq!(rig.config(msi + 2, Width::Word), 0x80, "one message, 64-bit address");
}

#[test]
fn a_message_for_each_port_is_offered_by_msix_and_can_be_left_out() {
    let mut rig = cold(Cache::WriteBack);
    let msix = rig.capability(0x11);
    assert_eq!(rig.config(msix + 2, Width::Word), 1, "an entry for each of two ports");
    let places = [4, 8].map(|at| rig.config(msix + at, Width::Dword));
    assert_eq!((size(&mut rig, 0), places), ((0, 4096), [0, 0x800]), "in BAR 0");
    let one = PciAhci::<2>::new([drive(0), None]).with_one_message();
    assert!(!one.function().capabilities.iter().flatten().any(|c| matches!(c, Capability::Msix { .. })));
    assert_eq!(one.function().bars[0], Bar::Absent);
    let many = PciAhci::<32>::new([None; 32]).function();
    assert_eq!(many.bars[0], Bar::Absent, "lines are bits of a u32");
}

#[test]
fn the_mode_is_ahci_and_ports_stay_enabled_when_software_says_so_again() {
    let mut rig = cold(Cache::WriteBack);
    assert_eq!((rig.config(0x90, Width::Byte), rig.config(0x92, Width::Word)), (0x40, 0x0003));
    // As Linux does (`ahci_intel_pcs_quirk`), and as nobody should.
    rig.set_config(0x92, Width::Word, 0x0003);
    rig.set_config(0x90, Width::Byte, 0);
    assert_eq!((rig.config(0x90, Width::Byte), rig.config(0x92, Width::Word)), (0x40, 0x0003));
}

#[test]
fn the_index_data_pair_reaches_the_registers_and_nothing_else() {
    let mut rig = ahci(Cache::WriteBack);
    let through = |rig: &mut Ahci, at: u64| {
        rig.write(4, 0x10, Width::Dword, at);
        (rig.read(4, 0x10, Width::Dword), rig.read(4, 0x14, Width::Dword) as u32)
    };
    let version = rig.host(0x10);
    assert_eq!(through(&mut rig, 0x10), (0x10, version));
    assert_eq!(through(&mut rig, 0xf013), (0x10, version), "bits beyond the registers are not kept");
    assert_eq!((rig.read(4, 0x16, Width::Word), rig.read(4, 0x14, Width::Qword)), (1, 0));
    rig.write(4, 0x11, Width::Byte, 1);
    assert_eq!(rig.read(4, 0x10, Width::Dword), 0x110, "a byte of the index");
    rig.prepare(0, 0, cmd(0xe7), &[]);
    rig.write(4, 0x10, Width::Dword, 0x138);
    rig.write(4, 0x14, Width::Dword, 1);
    rig.poll();
    assert_eq!((rig.reg(0, TFD), rig.disk().log.len()), (OK, 1), "a command was issued by it");
    assert_eq!(rig.read(4, 0, Width::Dword), 0);
    rig.hardware_reset();
    assert_eq!(rig.read(4, 0x10, Width::Dword), 0);
}

#[test]
fn a_pci_ide_function_is_a_piix_in_each_mode() {
    use {PciIdeChip::*, PciIdeMode::*};
    let modes = [(Native, 0x01_0185, 1), (Compatibility, 0x01_0180, 0), (CompatibilityByPin, 0x01_0180, 1)];
    let cases = [(Piix3, 0x7010_8086), (Piix4, 0x7111_8086)].map(|chip| modes.map(|mode| (chip, mode)));
    for ((chip, id), (mode, class, pin)) in cases.into_iter().flatten() {
        let mut rig = function(chip, mode);
        assert_eq!(rig.config(0, Width::Dword), id);
        assert_eq!((rig.config(8, Width::Dword) >> 8, rig.config(0x3d, Width::Byte)), (class, pin));
        // UDMACTL and UDMATIM, which a PIIX3 does not have.
        rig.set_config(0x48, Width::Dword, 0xffff_ffff);
        let udma = if chip == Piix4 { 0x3333_000f } else { 0 };
        assert_eq!(rig.config(0x48, Width::Dword), udma);
        let sizes = [0, 1, 2, 3, 4, 5].map(|bar| size(&mut rig, bar));
        assert_eq!(sizes, [(1, 8), (1, 4), (1, 8), (1, 4), (1, 16), (0, 0)]);
        // Both channels decode, whatever firmware writes there; timings are kept.
        assert_eq!(rig.config(0x40, Width::Dword), 0x8000_8000);
        rig.set_config(0x40, Width::Dword, 0x0000_a307);
        assert_eq!(rig.config(0x40, Width::Dword), 0x8000_a307);
        assert_eq!(rig.identify(0xa0)[0], 0x0040);
    }
}

#[test]
fn ports_answer_while_they_are_decoded() {
    let mut rig = one_drive(Cache::WriteBack);
    rig.permit(BUS_MASTER);
    assert_eq!(rig.alternate_status(), 0xff);
    rig.out(0, 7, 0xe7);
    rig.permit(IO | BUS_MASTER);
    assert_eq!((rig.status(), rig.disks[0].log.len()), (READY, 0), "nobody took the command");
}

#[test]
fn the_capability_bits_are_as_firmware_leaves_them_and_software_may_change_them() {
    let mut rig = ide([drive(0), None, drive(2), drive(3)], Cache::WriteBack);
    let status = |rig: &mut Ide| [2, 10].map(|at| rig.input(4, at));
    assert_eq!(status(&mut rig), [0x20, 0x60]);
    rig.out(4, 2, 0);
    rig.out(4, 10, 0x40);
    assert_eq!(status(&mut rig), [0, 0x40]);
    rig.hardware_reset();
    assert_eq!(status(&mut rig), [0x20, 0x60]);
}

#[test]
fn in_compatibility_mode_each_channel_has_a_wire() {
    let mut rig = function(PciIdeChip::Piix4, PciIdeMode::Compatibility);
    for (bar, wire) in [(0, 0b01), (2, 0b10)] {
        rig.out(bar, 7, 0xe7);
        rig.poll();
        assert_eq!(rig.irq, wire);
        assert_eq!((rig.input(bar, 7), rig.irq), (READY, 0));
    }
    rig.out(2, 7, 0xe7);
    rig.poll();
    rig.hardware_reset();
    assert_eq!(rig.irq, 0, "a reset lets go of it");
}

#[test]
fn one_pin_serves_both_channels() {
    let mut rig = ide([drive(0), None, drive(2), None], Cache::WriteBack);
    let flush = |rig: &mut Ide, bar: u8| {
        rig.out(bar, 7, 0xe7);
        rig.poll();
    };
    flush(&mut rig, 0);
    flush(&mut rig, 2);
    assert_eq!((rig.irq, rig.device.device().intrq()), (1, [true, true]));
    assert_eq!((rig.input(0, 7), rig.irq), (READY, 1), "the other one is pending");
    assert_eq!((rig.input(2, 7), rig.irq, rig.config(0x06, Width::Word) & 8), (READY, 0, 0));
    rig.permit(IO | BUS_MASTER | INTX_DISABLE);
    flush(&mut rig, 2);
    assert_eq!((rig.irq, rig.config(0x06, Width::Word) & 8), (0, 8), "disabled, but pending");
    rig.permit(IO | BUS_MASTER);
    assert_eq!(rig.irq, 1);
}

#[test]
fn pio_needs_no_bus_master_and_dma_waits_for_it() {
    let mut rig = one_drive(Cache::WriteBack);
    rig.disks[0].bytes[512..1024].copy_from_slice(&pattern(3, 512));
    rig.permit(IO);
    assert_eq!(rig.pio_in(cmd(0x20).lba(1).count(1), 512, 1), pattern(3, 512));
    rig.prds(0x100, &[(0x4000, 512)]);
    rig.start_dma(cmd(READ_DMA).lba(1).count(1), 0x100, true);
    assert_eq!((rig.busy(), rig.irq, rig.disks[0].log.len()), (true, 0, 1), "nothing was asked of the disk");
    assert_eq!(rig.input(4, 2) & 1, 1, "Start is remembered");
    rig.permit(IO | BUS_MASTER);
    assert_eq!((rig.stop_dma(), rig.status()), (0x04, READY));
    assert_eq!(rig.peek(0x4000, 512), pattern(3, 512));
}

/// Two operations' worth, the first of which is with the storage when the bus master is switched off.
#[test]
fn a_bus_master_switched_off_in_mid_command_touches_no_memory_until_it_is_on_again() {
    for opcode in [READ_DMA, WRITE_DMA] {
        let mut rig = one_drive(Cache::WriteBack);
        rig.disks[0].info.transfer_max_bytes = 512;
        rig.disks[0].bytes[..1024].copy_from_slice(&pattern(1, 1024));
        rig.poke(0x4000, &pattern(9, 1024));
        rig.disks[0].hold = true;
        rig.prds(0x100, &[(0x4000, 1024)]);
        rig.start_dma(cmd(opcode).count(2), 0x100, opcode == READ_DMA);
        assert_eq!(rig.disks[0].held(), 1);
        rig.permit(IO);
        let memory = rig.memory;
        rig.disks[0].release(&memory);
        rig.poll();
        assert_eq!((rig.busy(), rig.disks[0].log.len(), rig.irq), (true, 1, 0), "{opcode:#x}");
        assert_eq!(rig.peek(0x4200, 512), pattern(9, 1024)[512..], "{opcode:#x}");
        assert_eq!(rig.disks[0].sector(1), &pattern(1, 1024)[512..], "{opcode:#x}");
        rig.permit(IO | BUS_MASTER);
        assert_eq!((rig.stop_dma(), rig.status(), rig.disks[0].log.len()), (0x04, READY, 2), "{opcode:#x}");
        assert_eq!(rig.peek(0x4000, 1024), rig.disks[0].bytes[..1024], "{opcode:#x}");
    }
}

/// What was read through the staging buffer waits there.
#[test]
fn staged_data_goes_to_memory_when_the_bus_master_is_on_again() {
    let mut rig = one_drive(Cache::WriteBack);
    rig.disks[0].info.segments_max = 2;
    rig.disks[0].bytes[..512].copy_from_slice(&pattern(1, 512));
    rig.disks[0].hold = true;
    rig.prds(0x100, &[(0x4000, 100), (0x5000, 100), (0x6000, 312)]);
    rig.start_dma(cmd(READ_DMA).count(1), 0x100, true);
    rig.permit(IO);
    let memory = rig.memory;
    rig.disks[0].release(&memory);
    rig.poll();
    assert_eq!((rig.busy(), rig.peek(0x4000, 100)), (true, vec![0; 100]));
    rig.permit(IO | BUS_MASTER);
    assert_eq!((rig.stop_dma(), rig.status()), (0x04, READY));
    assert_eq!(rig.peek(0x6000, 312), pattern(1, 512)[200..]);
}

#[test]
fn a_bus_master_switched_off_does_not_keep_a_reset_from_ending() {
    let mut rig = one_drive(Cache::WriteBack);
    rig.disks[0].hold = true;
    rig.prds(0x100, &[(0x4000, 512)]);
    rig.start_dma(cmd(WRITE_DMA).count(1), 0x100, false);
    rig.permit(IO);
    rig.out(1, 2, 4);
    rig.out(1, 2, 0);
    assert!(rig.busy(), "the write has not landed");
    let memory = rig.memory;
    rig.disks[0].release(&memory);
    rig.poll();
    assert_eq!((rig.status(), rig.irq), (READY, 0));
}

const ON: u64 = MEMORY | BUS_MASTER;

#[test]
fn no_command_is_fetched_and_no_signature_posted_without_bus_mastering() {
    let mut rig = cold(Cache::WriteBack);
    rig.permit(MEMORY);
    rig.start(0);
    rig.poll();
    assert_eq!((rig.reg(0, TFD), rig.fis(0x40, 20)), (0x80, vec![0; 20]), "the signature waits");
    rig.permit(ON);
    assert_eq!((rig.reg(0, TFD) & 0xff, rig.fis(0x40, 1)), (0x50, vec![0x34]));
    rig.permit(MEMORY);
    rig.prepare(0, 0, cmd(0xe7), &[]);
    rig.go(1);
    assert_eq!((rig.reg(0, CI), rig.disk().log.len()), (1, 0));
    // What the list holds is read when the command is taken.
    rig.prepare(0, 0, cmd(0x35).lba(3).count(1), &[(DATA, 512)]);
    rig.poke(DATA, &[7; 512]);
    rig.permit(ON);
    assert_eq!((rig.reg(0, CI), rig.reg(0, TFD), rig.disk().sector(3)), (0, OK, &[7; 512][..]));
}

#[test]
fn commands_in_flight_are_reported_when_bus_mastering_is_on_again() {
    let mut rig = ahci(Cache::WriteBack);
    rig.poke(DATA, &[5; 1024]);
    rig.disk().hold = true;
    for tag in 0..2 {
        let write = queued(0x61, tag, u64::from(tag) + 1, 1, false);
        rig.prepare(0, tag, write, &[(DATA + 512 * u64::from(tag), 512)]);
    }
    rig.go_queued(3);
    assert_eq!(rig.disk().held(), 2);
    rig.poke(received(0), &[0; 0x100]);
    rig.permit(MEMORY);
    let memory = rig.memory;
    rig.disk().release(&memory);
    rig.poll();
    assert_eq!((rig.reg(0, SACT), rig.fis(0, 0x100)), (3, vec![0; 0x100]), "no FIS is posted");
    assert_eq!(rig.disk().bytes[512..1536], [5; 1024]);
    rig.permit(ON);
    assert_eq!((rig.reg(0, SACT), rig.reg(0, TFD), rig.fis(0x58, 1)), (0, OK, vec![0xa1]));
}

#[test]
fn stops_and_resets_end_without_bus_mastering() {
    let mut rig = ahci(Cache::WriteBack);
    for reset in [0_u8, 1, 2] {
        rig.disk().hold = true;
        rig.prepare(0, 0, cmd(0x35).lba(1).count(1), &[(DATA, 512)]);
        rig.go(1);
        rig.permit(MEMORY);
        match reset {
            0 => rig.set(0, CMD, FRE),
            1 => rig.comreset(),
            _ => rig.set_host(0x04, 1),
        }
        rig.poll();
        let waits = rig.reg(0, CMD) & CR != 0 || rig.reg(0, TFD) & 0x80 != 0 || rig.host(0x04) & 1 != 0;
        assert!(waits, "the write has not landed");
        let memory = rig.memory;
        rig.disk().release(&memory);
        rig.poll();
        rig.set(0, CMD, 0);
        rig.poll();
        assert_eq!((rig.reg(0, CMD) & CR, rig.host(0x04) & 1), (0, 0), "{reset}");
        rig.permit(ON);
        rig.start(0);
        rig.poll();
        assert_eq!(rig.reg(0, TFD) & 0x80, 0);
    }
}

#[test]
fn a_message_takes_the_place_of_the_pin() {
    let mut rig = ahci(Cache::WriteBack);
    rig.prepare(0, 0, cmd(0xe7), &[]);
    rig.go(1);
    assert_eq!((rig.irq & 1, rig.messages), (1, 0));
    rig.enable_msi();
    assert_eq!(rig.irq & 1, 0);
    let message = rig.device.message(0).unwrap();
    assert_eq!((message.address, message.data), (0xfee0_0000, 0x41));
    rig.acknowledge();
    rig.go(1);
    assert_eq!((rig.irq & 1, rig.messages), (0, 1));
    rig.acknowledge();
    rig.set_config(COMMAND, Width::Word, MEMORY);
    rig.go(1);
    assert_eq!(rig.messages, 1, "a message is a write to memory too");
}

#[test]
fn what_bus_mastering_allows_is_saved_with_the_function() {
    use blk_core::snapshot::{load, save};
    let mut rig = ahci(Cache::WriteBack);
    rig.permit(MEMORY);
    let mut buffer = vec![0; 1 << 16];
    let saved = save(&rig.device, &mut buffer).unwrap().to_vec();
    rig.device = load(&saved).unwrap();
    rig.prepare(0, 0, cmd(0xe7), &[]);
    rig.go(1);
    assert_eq!(rig.reg(0, CI), 1);
    rig.permit(ON);
    assert_eq!(rig.reg(0, CI), 0);
}
