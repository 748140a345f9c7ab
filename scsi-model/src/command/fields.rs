//! The fields of command blocks, by the kinds of the table's rows. Each block is long enough and has no stray bits.

use super::cdb::{Cdb, group_bytes};
use super::commands::{Against, Blocks, Command, ModeForm, ModeSense, PageControl};
use crate::sense::Sense;
use crate::wire::cdb::{
    Block6, Block10, Block12, Block16, Inquiry6, ModeSense10, ParameterOut10, ReportLuns12, ReportOpcodes12,
    ServiceActionIn16, Short6,
};

/// FUA, or FUA_NV: SBC-2, READ(10), lets a unit without a non-volatile cache take the second for the first.
const FUA: u8 = 0x0a;
const BYTCHK: u8 = 0x06;
const ANCHOR: u8 = 0x10;
const UNMAP: u8 = 0x08;
const NDOB: u8 = 0x01;

type Decoded = Result<Command, Sense>;

/// Kind of a command: what its fields mean, whatever its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    TestUnitReady,
    RequestSense,
    Inquiry,
    ReportLuns,
    ReportOpcodes,
    ReadCapacity10,
    ReadCapacity16,
    GetLbaStatus,
    ModeSense6,
    ModeSense10,
    ModeSelect6,
    ModeSelect10,
    StartStopUnit,
    PreventAllow,
    Read,
    Write,
    WriteAndVerify,
    Verify,
    CompareAndWrite,
    OrWrite,
    SynchronizeCache,
    WriteSame,
    Unmap,
}

/// The fields of a block of `kind`.
#[inline(always)]
pub(super) fn decode(kind: Kind, cdb: &Cdb) -> Decoded {
    let (flags, blocks) = match kind {
        Kind::Read | Kind::Write => range(cdb),
        _ => return decode_other(kind, cdb),
    };
    let fua = flags & FUA != 0;
    Ok(if kind == Kind::Read { Command::Read { blocks, fua } } else { Command::Write { blocks, fua } })
}

/// As [`decode`], of what is not the daily bread.
#[inline(never)]
fn decode_other(kind: Kind, cdb: &Cdb) -> Decoded {
    Ok(match kind {
        Kind::TestUnitReady => Command::TestUnitReady,
        Kind::RequestSense => request_sense(cdb),
        Kind::Inquiry => return inquiry(cdb),
        Kind::ReportLuns => report_luns(cdb),
        Kind::ReportOpcodes => report_opcodes(cdb),
        Kind::ReadCapacity10 => Command::ReadCapacity10,
        Kind::ReadCapacity16 => read_capacity16(cdb),
        Kind::GetLbaStatus => get_lba_status(cdb),
        Kind::ModeSense6 => mode_sense6(cdb),
        Kind::ModeSense10 => mode_sense10(cdb),
        Kind::ModeSelect6 => return mode_select6(cdb),
        Kind::ModeSelect10 => return mode_select10(cdb),
        Kind::StartStopUnit => return start_stop(cdb),
        Kind::PreventAllow => prevent_allow(cdb),
        Kind::Unmap => return unmap(cdb),
        _ => return decode_range(kind, range(cdb)),
    })
}

/// Of the commands that name blocks: byte 1 and the blocks.
fn decode_range(kind: Kind, (flags, blocks): (u8, Blocks)) -> Decoded {
    let fua = flags & FUA != 0;
    Ok(match kind {
        Kind::WriteAndVerify => return write_and_verify(flags, blocks),
        Kind::Verify => return verify(flags, blocks),
        Kind::CompareAndWrite => Command::CompareAndWrite { blocks, fua },
        Kind::OrWrite => Command::OrWrite { blocks, fua },
        Kind::WriteSame => return write_same(flags, blocks),
        // IMMED is taken as 0: the status comes when the data is stable.
        _ => Command::SynchronizeCache { blocks },
    })
}

fn request_sense(cdb: &Cdb) -> Command {
    let block: Short6 = cdb.view();
    Command::RequestSense { descriptors: block.flags & 1 != 0, allocation: block.last.into() }
}

fn inquiry(cdb: &Cdb) -> Decoded {
    let block: Inquiry6 = cdb.view();
    let page = (block.flags & 1 != 0).then_some(block.page);
    if page.is_none() && block.page != 0 {
        // SPC-4, INQUIRY: PAGE CODE without EVPD.
        return Err(Sense::cdb_field(2, None));
    }
    Ok(Command::Inquiry { page, allocation: block.allocation.get().into() })
}

fn report_luns(cdb: &Cdb) -> Command {
    let block: ReportLuns12 = cdb.view();
    Command::ReportLuns { select: block.select, allocation: block.allocation.get() }
}

fn report_opcodes(cdb: &Cdb) -> Command {
    let block: ReportOpcodes12 = cdb.view();
    Command::ReportOpcodes {
        options: block.options & 0x07,
        timeouts: block.options & 0x80 != 0,
        opcode: block.requested_opcode,
        service_action: block.requested_service_action.get(),
        allocation: block.allocation.get(),
    }
}

fn read_capacity16(cdb: &Cdb) -> Command {
    let block: ServiceActionIn16 = cdb.view();
    Command::ReadCapacity16 { allocation: block.allocation.get() }
}

fn get_lba_status(cdb: &Cdb) -> Command {
    let block: ServiceActionIn16 = cdb.view();
    Command::GetLbaStatus { lba: block.lba.get(), allocation: block.allocation.get() }
}

fn mode_sense6(cdb: &Cdb) -> Command {
    let block: Short6 = cdb.view();
    Command::ModeSense(ModeSense {
        form: ModeForm::Six,
        long_lba: false,
        no_descriptors: block.flags & 0x08 != 0,
        control: page_control(block.page),
        page: block.page & 0x3f,
        subpage: block.subpage,
        allocation: block.last.into(),
    })
}

fn mode_sense10(cdb: &Cdb) -> Command {
    let block: ModeSense10 = cdb.view();
    Command::ModeSense(ModeSense {
        form: ModeForm::Ten,
        long_lba: block.flags & 0x10 != 0,
        no_descriptors: block.flags & 0x08 != 0,
        control: page_control(block.page),
        page: block.page & 0x3f,
        subpage: block.subpage,
        allocation: block.allocation.get(),
    })
}

fn mode_select6(cdb: &Cdb) -> Decoded {
    let block: Short6 = cdb.view();
    mode_select(ModeForm::Six, block.flags, block.last.into())
}

fn mode_select10(cdb: &Cdb) -> Decoded {
    let block: ParameterOut10 = cdb.view();
    mode_select(ModeForm::Ten, block.flags, block.list_bytes.get())
}

fn mode_select(form: ModeForm, flags: u8, list: u16) -> Decoded {
    // Nothing can be saved (PS=0 in every page), so SP is refused: SPC-4, MODE SELECT(6).
    if flags & 0x01 != 0 {
        return Err(Sense::cdb_field(1, Some(0)));
    }
    // PF=0 announces vendor-specific parameters.
    if flags & 0x10 == 0 && list != 0 {
        return Err(Sense::cdb_field(1, Some(4)));
    }
    Ok(Command::ModeSelect { form, list })
}

fn start_stop(cdb: &Cdb) -> Decoded {
    let block: Short6 = cdb.view();
    // POWER CONDITION other than START_VALID, and ejection: SBC-3, START STOP UNIT. Neither is supported.
    if block.last & 0xf0 != 0 {
        return Err(Sense::cdb_field(4, Some(7)));
    }
    if block.last & 0x02 != 0 {
        return Err(Sense::cdb_field(4, Some(1)));
    }
    Ok(Command::StartStopUnit { start: block.last & 0x01 != 0, flush: block.last & 0x04 == 0 })
}

fn prevent_allow(cdb: &Cdb) -> Command {
    let block: Short6 = cdb.view();
    Command::PreventAllow { prevent: block.last & 0x01 != 0 }
}

fn write_and_verify(flags: u8, blocks: Blocks) -> Decoded {
    // Every BYTCHK is served by a comparison; 10b is reserved, and 11b is not defined for this command (SBC-3, WRITE AND VERIFY(10)).
    if flags & 0x04 != 0 {
        return Err(Sense::cdb_field(1, Some(2)));
    }
    Ok(Command::WriteAndVerify { blocks })
}

fn verify(flags: u8, blocks: Blocks) -> Decoded {
    let against = match (flags & BYTCHK) >> 1 {
        0 => Against::Nothing,
        1 => Against::Data,
        3 => Against::OneBlock,
        _ => return Err(Sense::cdb_field(1, Some(2))),
    };
    Ok(Command::Verify { blocks, against })
}

fn write_same(flags: u8, blocks: Blocks) -> Decoded {
    // Bit 3 is UNMAP here, not FUA (host-std/tests/defects.md, 12a).
    if flags & ANCHOR != 0 {
        return Err(Sense::cdb_field(1, Some(4)));
    }
    Ok(Command::WriteSame { blocks, unmap: flags & UNMAP != 0, no_data: flags & NDOB != 0 })
}

fn unmap(cdb: &Cdb) -> Decoded {
    let block: ParameterOut10 = cdb.view();
    if block.flags & 0x01 != 0 {
        return Err(Sense::cdb_field(1, Some(0)));
    }
    Ok(Command::Unmap { list: block.list_bytes.get() })
}

/// Byte 1 and the blocks, of a command of any length.
#[inline]
fn range(cdb: &Cdb) -> (u8, Blocks) {
    match group_bytes(cdb.opcode()) {
        Some(6) => {
            let block: Block6 = cdb.view();
            let lba = u64::from(block.lba_high & 0x1f) << 16 | u64::from(block.lba_low.get());
            // SBC-3, READ(6): 0 stands for 256.
            let count = if block.blocks == 0 { 256 } else { u64::from(block.blocks) };
            (0, Blocks { lba, count })
        }
        Some(10) => {
            let block: Block10 = cdb.view();
            (block.flags, Blocks { lba: block.lba.get().into(), count: block.blocks.get().into() })
        }
        Some(12) => {
            let block: Block12 = cdb.view();
            (block.flags, Blocks { lba: block.lba.get().into(), count: block.blocks.get().into() })
        }
        _ => {
            let block: Block16 = cdb.view();
            (block.flags, Blocks { lba: block.lba.get(), count: block.blocks.get().into() })
        }
    }
}

fn page_control(page: u8) -> PageControl {
    match page >> 6 {
        0 => PageControl::Current,
        1 => PageControl::Changeable,
        2 => PageControl::Default,
        _ => PageControl::Saved,
    }
}
