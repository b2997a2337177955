//! How messages of gRPC are read and written: as tonic's own codec does, but large ones are not decoded on a thread that serves
//! connections.

use prost::Message;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Messages up to this size are decoded where they were read. Files stay where they are, so most of a larger message costs nothing
/// either; numbers are decoded one by one, and a message may hold millions.
const LARGE_MESSAGE: usize = 256 << 10;

/// The codec of the services' generated code.
#[derive(Clone, Debug)]
pub struct OffloadingCodec<T, U>(ProstCodec<T, U>);

impl<T, U> Default for OffloadingCodec<T, U> {
    fn default() -> Self {
        Self(ProstCodec::default())
    }
}

impl<T, U> Codec for OffloadingCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = OffloadingDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        self.0.encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        OffloadingDecoder(self.0.decoder())
    }
}

/// Decodes large messages while another thread takes over what the runtime has to do.
#[derive(Clone, Debug)]
pub struct OffloadingDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for OffloadingDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        use bytes::Buf;
        // Elsewhere there is no other thread to take over.
        let can = || Handle::try_current().is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::MultiThread);
        match message.remaining() > LARGE_MESSAGE && can() {
            true => block_in_place(|| self.0.decode(message)),
            false => self.0.decode(message),
        }
    }
}
