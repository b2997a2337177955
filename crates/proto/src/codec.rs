//! A codec of gRPC messages. It works like tonic's own, except that it moves other work off the thread before it
//! decodes a large message.

use prost::Message;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Largest message that is decoded without precautions, bytes. Files are not copied, so most large messages are cheap
/// too; but numbers are decoded one by one, and a message may hold millions.
const LARGE_MESSAGE: usize = 256 << 10;

/// The codec that the generated code of the services uses.
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

/// Decodes large messages while another thread takes over the runtime's tasks.
#[derive(Clone, Debug)]
pub struct OffloadingDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for OffloadingDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        use bytes::Buf;
        // Other runtimes have no thread that could take over.
        let can_hand_over = || Handle::try_current().is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::MultiThread);
        match message.remaining() > LARGE_MESSAGE && can_hand_over() {
            true => block_in_place(|| self.0.decode(message)),
            false => self.0.decode(message),
        }
    }
}
