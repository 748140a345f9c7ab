use super::*;
use crate::bus::{Access, Device, IrqChange, Progress, Region, Width, WriteStatus};

fn ahci() -> ConfigSpace {
    let mut bars = [Bar::Absent; 6];
    bars[4] = Bar::Io { bytes: 32 };
    bars[5] = Bar::Memory32 { bytes: 0x2000 };
    let mut capabilities = [None; 8];
    capabilities[0] = Some(Capability::Msi { vectors_log2: 0 });
    capabilities[2] = Some(Capability::PowerManagement);
    capabilities[7] = Some(Capability::Sata { location: 0 });
    ConfigSpace::new(Function {
        identity: Identity::ICH9_AHCI,
        bars,
        capabilities,
        specific: [None, Some((0x40, 0x8000_8000, 0xffff_ffff)), None, None],
    })
}

/// The list as a driver walks it: (id, place).
fn walk(space: &ConfigSpace) -> std::vec::Vec<(u64, u64)> {
    let mut found = std::vec![];
    let mut at = space.read(0x34, Width::Byte);
    while at != 0 {
        assert!(at >= 0x40 && at.is_multiple_of(4) && found.len() < 48);
        found.push((space.read(at, Width::Byte), at));
        at = space.read(at + 1, Width::Byte);
    }
    found
}

#[test]
fn a_function_is_identified_and_its_header_is_read_only() {
    let mut space = ahci();
    let before: std::vec::Vec<_> = (0..0x100).map(|at| space.read(at, Width::Byte)).collect();
    assert_eq!(space.read(0, Width::Dword), 0x2922_8086);
    assert_eq!(space.read(8, Width::Dword), 0x0106_0102);
    assert_eq!(space.read(0x0e, Width::Byte), 0, "type 0, one function");
    assert_eq!(space.read(0x3d, Width::Byte), 1);
    for at in (0..0x100).filter(|at| !matches!(at, 0x04..0x06 | 0x0c | 0x0d | 0x10..0x28 | 0x3c | 0x40..)) {
        space.write(at, Width::Byte, !before[at as usize]);
        assert_eq!(space.read(at, Width::Byte), before[at as usize], "{at:#x}");
    }
}

#[test]
fn a_function_without_power_is_an_empty_slot() {
    let mut space = ConfigSpace::off();
    assert_eq!(space.write(4, Width::Word, 6), Changed::default());
    assert!((0..0x100).all(|at| space.read(at, Width::Byte) == 0xff));
    assert_eq!((space.bar(5), space.command()), (None, Command::empty()));
    space.power_on(ahci().function().clone());
    assert_eq!(space, ahci());
}

#[test]
fn bars_are_sized_by_writing_ones_and_decoded_only_when_enabled() {
    let mut space = ahci();
    for (n, sized) in [(0, 0), (3, 0), (4, 0xffff_ffe1), (5, 0xffff_e000)] {
        assert!(space.write(0x10 + n * 4, Width::Dword, 0xffff_ffff).bars);
        assert_eq!(space.read(0x10 + n * 4, Width::Dword), sized);
    }
    space.write(0x24, Width::Dword, 0xfebf_1234);
    assert_eq!(space.bar(5), None, "memory is not decoded");
    assert!(space.write(4, Width::Word, 0x0002).bars);
    assert_eq!(space.bar(5), Some((0xfebf_0000, 0x2000)));
    assert_eq!(space.bar(4), None, "ports are not");
    assert_eq!((space.bar(0), space.bar(6), space.bar(255)), (None, None, None));
}

#[test]
fn a_wide_bar_takes_two_registers() {
    let mut function = ahci().function().clone();
    function.bars = [Bar::Absent; 6];
    function.bars[2] = Bar::Memory64 { bytes: 0x4000, prefetchable: true };
    let mut space = ConfigSpace::new(function);
    space.write(0x18, Width::Dword, 0xffff_ffff);
    space.write(0x1c, Width::Dword, 0xffff_ffff);
    assert_eq!(space.read(0x18, Width::Qword), 0xffff_ffff_ffff_c00c);
    space.write(4, Width::Word, 2);
    space.write(0x18, Width::Qword, 0x0000_0012_3456_8000);
    assert_eq!(space.bar(2), Some((0x12_3456_8000, 0x4000)));
    // Where its end would wrap it is not placed.
    space.write(0x18, Width::Qword, u64::MAX);
    assert_eq!(space.bar(2), None);
}

#[test]
fn the_capability_list_is_walked_to_its_end() {
    let space = ahci();
    assert_ne!(space.read(6, Width::Word) & 1 << 4, 0);
    assert_eq!(walk(&space), [(0x05, 0x44), (0x01, 0x54), (0x12, 0x5c)]);
}

#[test]
fn capabilities_that_do_not_fit_are_left_out() {
    let mut function = ahci().function().clone();
    let long = Capability::Vendor { len: 21, bytes: [0xaa; 21] };
    function.capabilities = [Some(long); 8];
    function.specific = [Some((0x80, 0, 0)), None, None, None];
    let space = ConfigSpace::new(function);
    assert_eq!(walk(&space).len(), (0x100 - 0x84) / 24);
}

#[test]
fn intx_follows_the_level_unless_disabled_and_status_always_does() {
    let mut space = ahci();
    assert_eq!(space.set_level(true), IrqChange { changed: 1, level: 1 });
    assert_eq!(space.set_level(true), IrqChange::NONE);
    assert_ne!(space.read(6, Width::Word) & 1 << 3, 0);
    let changed = space.write(4, Width::Word, 1 << 10);
    assert_eq!(changed.irq, IrqChange { changed: 1, level: 0 });
    assert_ne!(space.read(6, Width::Word) & 1 << 3, 0, "the status follows the level all the same");
    assert_eq!(space.write(4, Width::Word, 0).irq, IrqChange { changed: 1, level: 1 });
    assert_eq!(space.set_level(false), IrqChange { changed: 1, level: 0 });
    assert_eq!(space.read(6, Width::Word) & 1 << 3, 0);
}

#[test]
fn msi_sends_a_message_instead_of_the_pin_and_needs_bus_mastering() {
    let mut space = ahci();
    space.set_level(true);
    space.write(0x48, Width::Qword, 0xfee0_1003);
    space.write(0x50, Width::Word, 0x4021);
    let changed = space.write(0x46, Width::Word, 1);
    assert_eq!(changed.irq, IrqChange { changed: 1, level: 0 }, "the pin is not used any more");
    assert_eq!(space.msi_message(0), None, "no bus mastering, no message");
    space.write(4, Width::Word, 4);
    let message = Message { address: 0xfee0_1000, data: 0x4021 };
    assert_eq!(space.msi_message(0), Some(message));
    assert_eq!(space.msi_message(3), Some(message), "one vector was allocated");
    assert_eq!(space.read(0x46, Width::Word), 0x0081);
}

#[test]
fn msi_vectors_go_into_the_low_bits() {
    let mut function = ahci().function().clone();
    function.capabilities[0] = Some(Capability::Msi { vectors_log2: 2 });
    let mut space = ConfigSpace::new(function);
    space.write(4, Width::Word, 4);
    space.write(0x50, Width::Word, 0x4020);
    space.write(0x46, Width::Word, 2 << 4 | 1);
    assert_eq!((space.messages(), space.msi_message(3)), (4, Some(Message { address: 0, data: 0x4023 })));
    // Multiple Message Enable has reserved values: none of them shifts out of range.
    space.write(0x46, Width::Word, 7 << 4 | 1);
    assert_eq!((space.messages(), space.msi_message(3)), (4, Some(Message { address: 0, data: 0x4023 })));
    space.write(0x46, Width::Word, 2 << 4);
    assert_eq!(space.messages(), 0);
}

#[test]
fn odd_accesses_read_ones_and_change_nothing() {
    let mut space = ahci();
    let before = space.clone();
    for (at, width) in [(1, Width::Word), (2, Width::Dword), (0x100, Width::Byte), (u64::MAX, Width::Qword)] {
        assert_eq!(space.read(at, width), width.ones());
        space.write(at, width, 0);
    }
    assert_eq!(space, before);
    space.write(0x44, Width::Qword, u64::MAX);
    space.write(4, Width::Word, 0xffff);
    assert_eq!(space.read(4, Width::Word), 0x0547, "only the bits that there are");
    space.reset();
    assert_eq!(space, before);
}

#[test]
fn a_masked_vector_is_pending_until_it_is_unmasked() {
    let mut table = MsixTable::<3>::new();
    table.write(16, Width::Qword, 0x0000_0001_fee0_2003);
    table.write(24, Width::Dword, 0x31);
    table.raise(1);
    table.raise(9);
    assert_eq!(table.take(false), None, "masked after a reset");
    assert_eq!(table.read_pending(0, Width::Qword), 0b10);
    table.write(28, Width::Dword, 0);
    assert_eq!(table.take(true), None, "the function is masked");
    let message = Message { address: 0x1_fee0_2000, data: 0x31 };
    assert_eq!(table.take(false), Some((1, message)));
    assert_eq!(table.take(false), None, "once");
    assert_eq!(table.read_pending(0, Width::Dword), 0);
}

#[test]
fn a_table_without_entries_has_no_messages() {
    let mut table = MsixTable::<0>::new();
    table.write(0, Width::Dword, 1);
    table.raise(0);
    assert_eq!((table.read(0, Width::Dword), table.read_pending(0, Width::Qword)), (0, 0));
    assert_eq!((table.take(false), table.message(0)), (None, None));
}

#[test]
fn the_table_is_read_as_it_was_written_in_dwords_and_qwords_only() {
    let mut table = MsixTable::<2>::new();
    table.write(28, Width::Dword, u64::MAX);
    assert_eq!(table.read(28, Width::Dword), 1);
    assert_eq!(table.read(24, Width::Qword), 1 << 32);
    let before = table.clone();
    for (at, width) in
        [(0, Width::Byte), (2, Width::Dword), (4, Width::Qword), (32, Width::Dword), (u64::MAX, Width::Byte)]
    {
        table.write(at, width, u64::MAX);
        assert_eq!(table.read(at, width), 0);
    }
    assert_eq!(table, before);
}

/// Two vectors, a table in BAR 1 at 100h, and a register in BAR 1 whose write raises what it says.
#[derive(Clone, Debug, Default)]
struct Toy {
    permissions: Permissions,
    level: bool,
}

impl Endpoint for Toy {
    const VECTORS: usize = 2;

    fn function(&self) -> Function {
        let mut bars = [Bar::Absent; 6];
        bars[1] = Bar::Memory32 { bytes: 0x1000 };
        let msix = Capability::Msix { vectors: 2, table: (1, 0x100), pending: (1, 0x200) };
        let mut capabilities = [None; 8];
        capabilities[0] = Some(msix);
        capabilities[1] = Some(Capability::Msi { vectors_log2: 1 });
        Function { identity: Identity::ICH9_AHCI, bars, capabilities, specific: [None; 4] }
    }

    fn permit(&mut self, permissions: Permissions) {
        self.permissions = permissions;
    }
}

impl Device<(), ()> for Toy {
    fn read(&mut self, _: Region, _: u64, _: Width, (): &(), (): &mut ()) -> Access<u64> {
        Access::quiet(7)
    }

    fn write(
        &mut self,
        _: Region,
        _: u64,
        _: Width,
        lines: u64,
        (): &(),
        (): &mut (),
    ) -> Access<WriteStatus> {
        let lines = lines as u32;
        let pin = IrqChange::between(self.level.into(), lines & 1);
        self.level = lines & 1 != 0;
        Access {
            value: WriteStatus::Done,
            irq: pin.then(IrqChange { changed: lines & !1, level: lines & !1 }),
        }
    }

    fn poll(&mut self, (): &(), (): &mut ()) -> Progress {
        Progress::default()
    }

    fn reset(&mut self, (): &(), (): &mut ()) -> Progress {
        let irq = IrqChange::between(self.level.into(), 0);
        *self = Self { level: false, ..self.clone() };
        Progress { irq, ..Progress::default() }
    }
}

fn toy(owner: MsixOwner) -> PciFunction<Toy, 2> {
    PciFunction::new(Toy::default(), owner)
}

fn put(toy: &mut PciFunction<Toy, 2>, region: Region, offset: u64, value: u64) -> IrqChange {
    toy.write(region, offset, Width::Dword, value, &(), &mut ()).irq
}

fn lines(lines: u32) -> IrqChange {
    IrqChange { changed: lines, level: lines }
}

#[test]
fn registers_answer_only_while_they_are_decoded() {
    let mut toy = toy(MsixOwner::Function);
    let get =
        |toy: &mut PciFunction<Toy, 2>, n| toy.read(Region::Bar(n), 0, Width::Dword, &(), &mut ()).value;
    assert_eq!(get(&mut toy, 1), 0xffff_ffff);
    assert_eq!(put(&mut toy, Region::Bar(1), 0, 1), IrqChange::NONE);
    put(&mut toy, Region::Config, 4, 2);
    assert_eq!((get(&mut toy, 1), get(&mut toy, 0), get(&mut toy, 9)), (7, 0xffff_ffff, 0xffff_ffff));
}

#[test]
fn interrupts_take_the_way_that_is_enabled() {
    let mut toy = toy(MsixOwner::Function);
    put(&mut toy, Region::Config, 4, 2);
    assert_eq!(put(&mut toy, Region::Bar(1), 0, 0b011), lines(1), "the pin");
    // MSI, at 4ch behind MSI-X: the pin falls, and without bus mastering no message is sent.
    assert_eq!(put(&mut toy, Region::Config, 0x4c, 0x0001_0000), IrqChange { changed: 1, level: 0 });
    assert_eq!(put(&mut toy, Region::Bar(1), 0, 0b011), IrqChange::NONE);
    put(&mut toy, Region::Config, 4, 6);
    assert_eq!(toy.device().permissions, Permissions { bus_master: true, messages: 1 });
    put(&mut toy, Region::Config, 0x50, 0xfee0_0000);
    assert_eq!(put(&mut toy, Region::Bar(1), 0, 0b011), lines(0b10));
    assert_eq!(toy.message(0).unwrap().address, 0xfee0_0000);
}

#[test]
fn the_table_masks_what_it_owns_and_lets_go_what_the_embedder_owns() {
    for owner in [MsixOwner::Function, MsixOwner::Embedder] {
        let mut toy = toy(owner);
        put(&mut toy, Region::Config, 4, 6);
        put(&mut toy, Region::Config, 0x40, 1 << 31);
        let raised = put(&mut toy, Region::Bar(1), 0, 0b110);
        if owner == MsixOwner::Embedder {
            assert_eq!(raised, lines(0b110));
            continue;
        }
        assert_eq!(raised, IrqChange::NONE, "masked after a reset");
        put(&mut toy, Region::Bar(1), 0x110, 0xfee0_1000);
        assert_eq!(put(&mut toy, Region::Bar(1), 0x11c, 0), lines(0b100), "due when it is unmasked");
        assert_eq!(toy.message(1).unwrap().address, 0xfee0_1000);
        assert_eq!(toy.read(Region::Bar(1), 0x200, Width::Dword, &(), &mut ()).value, 0b01);
        // Function Mask holds all of them back.
        put(&mut toy, Region::Config, 0x40, 3 << 30);
        assert_eq!(put(&mut toy, Region::Bar(1), 0, 0b100), IrqChange::NONE);
        assert_eq!(put(&mut toy, Region::Config, 0x40, 1 << 31), lines(0b100));
    }
}

#[test]
fn a_reset_takes_everything_back() {
    let mut toy = toy(MsixOwner::Function);
    put(&mut toy, Region::Config, 4, 6);
    put(&mut toy, Region::Bar(1), 0, 1);
    assert_eq!(toy.reset(&(), &mut ()).irq, IrqChange { changed: 1, level: 0 });
    assert_eq!(toy.device().permissions, Permissions::default());
    assert_eq!(toy.config().command(), Command::empty());
}
