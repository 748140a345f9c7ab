//! The registers of the AHCI HBA: reset values, read-only bits, widths, interrupts, the link, hot plugging.

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

use ata_model::Hba;
use blk_core::bus::{Device, Region, Width};
use blk_core::storage::Cache;
use rig::ahci::*;
use rig::{cmd, drive};

#[test]
fn capabilities_say_what_is_there_and_what_is_not() {
    let mut rig = cold(Cache::WriteBack);
    let cap = rig.host(0x00);
    assert_eq!((cap & 0x1f, cap >> 8 & 0x1f, cap >> 20 & 0xf), (1, 31, 3), "ports, slots, speed");
    let present = [15, 18, 24, 30, 31];
    let absent = [5, 6, 7, 13, 14, 16, 17, 25, 26, 27, 28, 29];
    for bit in present {
        assert_eq!(cap >> bit & 1, 1, "CAP bit {bit}");
    }
    for bit in absent {
        assert_eq!(cap >> bit & 1, 0, "CAP bit {bit}");
    }
    assert_eq!((rig.host(0x0c), rig.host(0x10)), (0b11, 0x0001_0301), "PI, VS");
    assert_eq!(rig.host(0x04), 1 << 31, "AE is set, and stays");
    assert_eq!((rig.host(0x24), rig.host(0x28)), (0, 0), "CAP2: no device sleep; BOHC");
    assert_eq!(Hba::<32>::ABAR_BYTES, 0x1100);
    let mut full = hba([const { None }; 32], Cache::WriteBack);
    assert_eq!(full.read(5, 0x0c, Width::Dword), 0xffff_ffff);
    assert_eq!(full.read(5, 0, Width::Dword) & 0x1f, 31);
}

#[test]
fn read_only_and_reserved_bits_stay_as_they_are() {
    let mut rig = cold(Cache::WriteBack);
    for offset in (0..0x200).step_by(4) {
        if !matches!(offset, 0x04 | 0x118 | 0x12c | 0x198 | 0x1ac) {
            rig.set_host(offset, u32::MAX);
        }
    }
    assert_eq!((rig.host(0), rig.host(0x0c), rig.host(0x10)), (0xc134_9f01, 3, 0x0001_0301));
    assert_eq!((rig.reg(0, CLB), rig.reg(0, CLBU)), (0xffff_fc00, 0xffff_ffff));
    assert_eq!((rig.reg(0, FB), rig.reg(0, FBU)), (0xffff_ff00, 0xffff_ffff));
    assert_eq!((rig.reg(0, IE), rig.reg(0, IS)), (0xfdc0_00ff, 0));
    assert_eq!((rig.reg(0, TFD), rig.reg(0, SIG), rig.reg(0, SSTS)), (0x80, u32::MAX, 0x133));
    assert_eq!((rig.reg(0, SACT), rig.reg(0, CI)), (0, 0), "they take nothing while ST is clear");
    for offset in [0x1c, 0x3c, 0x40, 0x44, 0x48, 0x60, 0x7c] {
        assert_eq!(rig.reg(0, offset), 0, "reserved, PxSNTF, PxFBS, PxDEVSLP, vendor: {offset:#x}");
    }
    for offset in [0x2c, 0x60, 0xa0, 0xfc, 0x200, 0x10fc, 0xffff_fffc] {
        assert_eq!(rig.host(offset), 0, "{offset:#x}");
    }
    rig.set(0, SCTL, !0xf);
    assert_eq!(rig.reg(0, SCTL), 0xff0);
    rig.set(0, CMD, !(ST | FRE));
    assert_eq!(rig.reg(0, CMD), 0x0304_0006, "ICC, PMA and ALPE do nothing; SUD, POD and HPCP are fixed");
    let hba = rig.device.device_mut().hba_mut();
    let outside = hba.read(Region::Bar(4), 0, Width::Dword, &rig.memory, &mut rig.disks[..]);
    assert_eq!(outside.value, 0xffff_ffff);
}

#[test]
fn narrow_and_wide_accesses_reach_the_bytes_that_they_name() {
    let mut rig = cold(Cache::WriteBack);
    assert_eq!(rig.read(5, 0x10, Width::Byte), 0x01);
    assert_eq!(rig.read(5, 0x11, Width::Word), 0x0103, "across bytes");
    assert_eq!(rig.read(5, 0x12, Width::Word), 0x0001);
    assert_eq!(rig.read(5, 0x0e, Width::Dword), 0x0301_0000, "across registers");
    assert_eq!(rig.read(5, 0x0c, Width::Qword), 0x0001_0301_0000_0003);
    rig.write(5, 0x100, Width::Qword, 0x1122_3344_5566_7788);
    assert_eq!((rig.reg(0, CLB), rig.reg(0, CLBU)), (0x5566_7400, 0x1122_3344));
    rig.write(5, 0x105, Width::Byte, 0xaa);
    assert_eq!(rig.reg(0, CLBU), 0x1122_aa44);
    // Bits that a one clears are cleared only in the bytes written.
    assert_eq!(rig.reg(0, SERR), 0x0401_0000, "X and N: a drive appeared");
    rig.write(5, 0x133, Width::Byte, 0xff);
    assert_eq!(rig.reg(0, SERR), 0x0001_0000);
    rig.write(5, 0x132, Width::Word, 0x0001);
    assert_eq!(rig.reg(0, SERR), 0);
}

#[test]
fn a_signature_comes_when_fises_are_received() {
    let mut rig = cold(Cache::WriteBack);
    assert_eq!((rig.reg(0, TFD), rig.reg(1, TFD)), (0x80, 0x7f), "busy; nobody");
    assert_eq!((rig.reg(0, SSTS), rig.reg(1, SSTS)), (0x133, 0));
    rig.set(0, FB, received(0) as u32);
    rig.set(0, CMD, FRE);
    assert_eq!((rig.reg(0, TFD), rig.reg(0, SIG)), (0x0150, 0x0000_0101));
    assert_eq!(rig.fis(0x40, 14), [0x34, 0, 0x50, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(rig.reg(0, CMD) & (FR | CR), FR);
    assert_eq!(rig.reg(0, IS) & DHRS, 0, "a signature does not interrupt");
    rig.start(1);
    assert_eq!((rig.reg(1, SIG), rig.reg(1, CMD) & CR), (u32::MAX, CR));
    rig.set(1, CI, 1);
    rig.poll();
    assert_eq!(rig.reg(1, CI), 1, "a drive that is not there answers nothing");
    rig.set(1, CMD, 0);
    assert_eq!((rig.reg(1, CI), rig.reg(1, CMD) & (CR | FR)), (0, 0));
}

#[test]
fn is_and_the_line_follow_what_is_pending_and_enabled() {
    let mut rig = ahci(Cache::WriteBack);
    rig.prepare(0, 0, cmd(0xe7), &[]);
    rig.go(1);
    assert_eq!((rig.irq & 1, rig.host(0x08), rig.reg(0, IS)), (1, 1, DHRS));
    rig.set_host(0x08, 1);
    assert_eq!((rig.irq & 1, rig.host(0x08)), (1, 1), "it is set for as long as the port's is");
    rig.set(0, IS, DHRS);
    assert_eq!((rig.irq & 1, rig.host(0x08)), (1, 1), "and latched");
    rig.set_host(0x08, 1);
    assert_eq!((rig.irq & 1, rig.host(0x08)), (0, 0));
    rig.set(0, IE, !DHRS);
    rig.go(1);
    assert_eq!((rig.irq & 1, rig.reg(0, IS), rig.reg(0, CI)), (0, DHRS, 0));
    rig.set_host(0x04, 0);
    rig.set(0, IE, DHRS);
    assert_eq!((rig.irq & 1, rig.host(0x08)), (0, 1), "GHC.IE gates the line");
    rig.set_host(0x04, 2);
    assert_eq!(rig.irq & 1, 1);
}

#[test]
fn a_message_is_sent_for_each_event_that_could_else_be_missed() {
    let mut rig = ahci(Cache::WriteBack);
    rig.enable_msi();
    let before = rig.messages;
    rig.prepare(0, 0, cmd(0xe7), &[]);
    rig.go(1);
    assert_eq!(rig.messages, before + 1);
    rig.set(0, IS, DHRS);
    assert_eq!(rig.messages, before + 1, "nothing new");
    rig.go(1);
    assert_eq!(rig.messages, before + 1, "the bit of IS is set already");
    rig.set_host(0x08, 1);
    assert_eq!((rig.messages, rig.host(0x08)), (before + 2, 1), "but clearing it does not lose the event");
    rig.set(0, IS, DHRS);
    rig.set_host(0x08, 1);
    assert_eq!((rig.messages, rig.host(0x08)), (before + 2, 0));
    rig.set_host(0x04, 0);
    rig.go(1);
    rig.set_host(0x04, 2);
    assert_eq!(rig.messages, before + 3);
}

#[test]
fn a_port_s_own_message_needs_no_look_at_is() {
    let mut rig = hba([None, drive(0), drive(1)], Cache::WriteBack);
    rig.start(1);
    rig.start(2);
    rig.enable_msix(3);
    rig.port_messages.clear();
    for port in [2, 1] {
        rig.prepare(port, 0, cmd(0xe7), &[]);
        rig.set(port, CI, 1);
        rig.poll();
        assert_eq!((rig.irq & 1, std::mem::take(&mut rig.port_messages)), (0, vec![port as u8]));
        // IS, at 08h, stays as it is from here on.
        rig.set(port, IS, DHRS);
        assert_eq!(rig.port_messages, [], "nothing is left");
        rig.prepare(port, 0, cmd(0xe7), &[]);
        rig.set(port, CI, 1);
        rig.poll();
        assert_eq!(std::mem::take(&mut rig.port_messages), [port as u8]);
        rig.set(port, CI, 1);
        rig.poll();
        assert_eq!(rig.port_messages, [], "the event is pending already");
    }
    assert_eq!(rig.host(0x08), 0b110);
    // Of two events one is cleared: the other one is not lost.
    rig.prepare(1, 0, cmd(0x25), &[(DATA, 512)]);
    rig.set(1, CLB, list(1) as u32);
    rig.set(1, IE, DHRS | PCS);
    rig.port_messages.clear();
    rig.set(1, SCTL, 1);
    rig.set(1, SCTL, 0);
    rig.poll();
    assert_eq!(
        (rig.reg(1, IS) & (PCS | DHRS), std::mem::take(&mut rig.port_messages)),
        (PCS | DHRS, vec![1])
    );
    rig.set(1, IS, DHRS);
    assert_eq!(std::mem::take(&mut rig.port_messages), [1]);
    rig.set(1, SERR, u32::MAX);
    assert_eq!(rig.port_messages, []);
    // Off and on again.
    rig.set_host(0x04, 0);
    rig.set(2, CI, 1);
    rig.poll();
    assert_eq!(rig.port_messages, []);
    rig.set_host(0x04, 2);
    assert_eq!(rig.port_messages, [2]);
}

#[test]
fn connect_bits_are_cleared_in_pxserr_only() {
    let mut rig = cold(Cache::WriteBack);
    rig.set(0, IS, u32::MAX);
    assert_eq!(rig.reg(0, IS), PCS | PRCS);
    rig.set(0, SERR, 1 << 26);
    assert_eq!(rig.reg(0, IS), PRCS);
    rig.set(0, SERR, 1 << 16);
    assert_eq!(rig.reg(0, IS), 0);
}

#[test]
fn a_comreset_takes_the_link_down_and_brings_it_back_with_a_signature() {
    let mut rig = ahci(Cache::WriteBack);
    rig.set(0, CMD, FRE);
    rig.set(0, SCTL, 0x311);
    assert_eq!((rig.reg(0, SSTS), rig.reg(0, TFD), rig.reg(0, SIG)), (0, 0x7f, u32::MAX));
    rig.set(0, SCTL, 0x310);
    assert_eq!(rig.reg(0, SCTL) & 0xf0f, 0x300, "sata_link_resume reads it back");
    assert_eq!((rig.reg(0, SSTS), rig.reg(0, TFD), rig.reg(0, SIG)), (0x113, 0x0150, 0x101), "at 1.5 Gb/s");
    assert_eq!(rig.reg(0, SERR), 1 << 26 | 1 << 16);
    rig.set(0, SCTL, 0x304);
    assert_eq!(rig.reg(0, SSTS), 4, "off");
    rig.set(0, SCTL, 0);
    assert_eq!((rig.reg(0, SSTS), rig.reg(0, TFD)), (0x133, 0x0150));
}

#[test]
fn drives_come_and_go() {
    let mut rig = ahci(Cache::WriteBack);
    rig.start(1);
    assert!(rig.hba().plug(1, drive(1).unwrap()));
    assert!(!rig.hba().plug(1, drive(1).unwrap()), "it is taken");
    rig.poll();
    assert_eq!((rig.reg(1, SSTS), rig.reg(1, IS), rig.reg(1, SIG)), (0x133, PCS | PRCS, 0x101));
    assert_eq!(rig.irq & 1, 1);
    rig.hba().unplug(0);
    rig.poll();
    assert_eq!((rig.reg(0, SSTS), rig.reg(0, TFD), rig.reg(0, IS)), (0, 0x7f, PRCS));
    assert!(rig.hba().is_empty(0));
    rig.hba().unplug(0);
    rig.set(0, CMD, 0);
    assert_eq!(rig.reg(0, CMD) & CR, 0);
}

#[test]
fn a_drive_that_is_pulled_out_lands_nothing_on_the_one_that_comes_after_it() {
    let mut rig = ahci(Cache::WriteBack);
    rig.disk().hold = true;
    rig.poke(DATA, &[0x11; 512]);
    rig.prepare(0, 0, cmd(0x35).lba(7).count(1), &[(DATA, 512)]);
    rig.go(1);
    rig.hba().unplug(0);
    rig.poll();
    assert!(!rig.hba().plug(0, drive(1).unwrap()), "a write of the old drive is in flight");
    let memory = rig.memory;
    rig.disk().release(&memory);
    rig.poll();
    assert!(rig.hba().is_empty(0) && rig.hba().plug(0, drive(1).unwrap()));
    rig.poll();
    assert_eq!((rig.reg(0, CI), rig.reg(0, CMD) & CR), (1, CR), "the list is the host's to clear");
    rig.restart();
    assert_eq!((rig.reg(0, CI), rig.reg(0, TFD) & 0xff), (0, OK));
    assert_eq!(rig.command(cmd(0xec), &[(DATA, 512)]), OK);
}

#[test]
fn identify_says_what_a_serial_drive_has() {
    let mut rig = ahci(Cache::WriteBack);
    let words = rig.identify_serial();
    assert_eq!(words[75], 31, "queue depth");
    assert_eq!(words[76], 0x010e, "NCQ, three speeds");
    assert_eq!(words[77], 0, "no NCQ NON-DATA, no SEND FPDMA QUEUED");
    assert_eq!((words[78], words[79]), (0x40, 0x40), "settings outlive a COMRESET");
    assert_eq!((words[93], words[222] >> 12), (0, 1), "serial");
    assert_eq!(words[49] >> 8 & 1, 1);
    assert_eq!(words[84] >> 5 & 3, 3, "general purpose logging, FUA");
    let directory = cmd(0x2f).count(1).lba(0);
    assert_eq!(rig.command(directory, &[(DATA, 512)]), OK);
    assert_eq!(rig.peek(DATA + 0x20, 2), [1, 0], "log 10h is there");
    for (command, features, count) in [(0x63, 0, 0), (0x64, 0, 0), (0x65, 0, 0), (0xef, 0x10, 2)] {
        assert_eq!(rig.command(cmd(command).features(features).count(count), &[]), ABORTED, "{command:#x}");
        rig.restart();
    }
}

/// Machines with one port and none of its drives, and with storage missing.
#[test]
fn an_hba_without_drives_resets_and_stops() {
    let mut rig = hba([None], Cache::WriteBack);
    rig.disks.clear();
    rig.write(5, 0x118, Width::Dword, 0x11);
    rig.write(5, 0x138, Width::Dword, 1);
    rig.write(5, 0x118, Width::Dword, 0);
    assert_eq!(rig.read(5, 0x118, Width::Dword) & 0xc000, 0);
    rig.write(5, 0x04, Width::Dword, 1);
    assert_eq!(rig.read(5, 0x04, Width::Dword), 1 << 31);
    assert!(!rig.hardware_reset().pending_write);
}
