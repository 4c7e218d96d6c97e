//! Progress of an import.

/// Who wants to know how far an import is: a bar of the command line, a stream of the API.
pub trait Progress: Send + Sync {
    /// A new stage begins: `kernel`, `disk`, ...; with its bytes, when they are known. Counting starts anew.
    fn stage(&self, name: &str, total: Option<u64>);
    /// Bytes done in this stage since the last call.
    fn advance(&self, bytes: u64);
    /// Something the operator should know although the import goes on.
    fn warn(&self, message: &str);
}

/// Nobody wants to know.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn stage(&self, _name: &str, _total: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
    fn warn(&self, message: &str) {
        tracing::warn!(message, "image import");
    }
}
