//! What a program consists of.

use object::{Object, ObjectSection, ObjectSymbol, Section, SymbolKind};

use crate::stack::Stack;

/// What a front needs, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Code and constants.
    pub(crate) code: u64,
    /// The device.
    pub(crate) state: u64,
    /// Stack of what brings the device up.
    pub(crate) init: u64,
    /// Stack of an access or a reset, the deepest of them.
    pub(crate) access: u64,
    /// Stack of a poll.
    pub(crate) poll: u64,
}

impl Needs {
    /// Reads them out of a program.
    pub(crate) fn of(image: &[u8]) -> Self {
        let file = object::File::parse(image).expect("an ELF file");
        let code = file.sections().filter(|section| is_text(section) || is_constant(section));
        let code = code.map(|section| section.size()).sum();

        let mut stack = Stack::new(|at| word(&file, at));
        for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() != 0)
        {
            let bytes = bytes(&file, symbol.address(), symbol.size()).expect("a function has bytes");
            stack.add(symbol.name().unwrap_or_default(), symbol.address(), bytes);
        }
        for section in file.sections().filter(is_constant) {
            stack.add_constants(section.data().expect("constants have bytes"));
        }
        let access = ["machine_read", "machine_write", "machine_reset"].map(|name| stack.of(name));
        Self {
            code,
            state: number(&file, "STATE_BYTES"),
            init: stack.of("machine_init"),
            access: access.into_iter().max().unwrap_or(0),
            poll: stack.of("machine_poll"),
        }
    }
}

fn is_text(section: &Section<'_, '_>) -> bool {
    section.name().is_ok_and(|name| name.starts_with(".text"))
}

fn is_constant(section: &Section<'_, '_>) -> bool {
    section.name().is_ok_and(|name| name.starts_with(".rodata") || name.starts_with(".data.rel.ro"))
}

/// The value of a static.
fn number(file: &object::File<'_>, name: &str) -> u64 {
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name)).expect("the static is linked");
    word(file, symbol.address()).expect("it has a value")
}

fn word(file: &object::File<'_>, at: u64) -> Option<u64> {
    bytes(file, at, 8)?.try_into().ok().map(u64::from_le_bytes)
}

fn bytes<'a>(file: &object::File<'a>, at: u64, len: u64) -> Option<&'a [u8]> {
    let mut sections = file.sections().filter(|section| section.address() != 0);
    sections.find_map(|section| section.data_range(at, len).ok().flatten())
}
