"""Moves blocks of bytes between workers.

Two nouns: a `Region` is registered memory, a transfer takes blocks from here to there.

    decode worker                                   prefill worker
    Receiver.expect(id, epoch, blocks)
                                      <-- OPEN      Sender.begin
                                          GRANT --> (may write; RENEW keeps the lease)
                          <-- BLOCK, or written     OutboundTransfer.push, chunk by chunk
                              directly and PLACED
                                      <-- COMMIT    OutboundTransfer.commit
    Committed(payload)                    ACK   --> done
    Receiver.release(id)

| module | what |
|---|---|
| region, peer, select | memory, the two ends, which transport they use |
| frames, payloads | the bytes on the wire |
| links, zmq_tcp, fake | what carries frames |
| shared_memory, locked_file, host | host memory that peers map, and its cleaning up |
| cuda_ipc, copy_batch, runs | GPU memory that peers open, and copies of it |
| block_store, device_blocks | blocks as bytes, for transports that send frames |
| sender, peer_link, outbound, lease, copier | the sending end |
| receiver, inbound, fences | the receiving end |
| io_loop | the thread that each end has |

A transport that writes directly (cuda_ipc, shared_memory) is a `links.DirectWriter` and a name
in `select.DIRECT`; one that sends frames needs neither. Only cuda_ipc imports CuPy, when GPU
memory is first used.
"""
