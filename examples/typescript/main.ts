// A client of the shop in TypeScript: creates an order and confirms it. README.md in this folder says how to run it.
import { randomUUID } from "node:crypto";
import { parseArgs } from "node:util";

import * as grpc from "@grpc/grpc-js";

import { BadRequest, ErrorInfo, Status } from "./gen/errors";
import {
  CreateOrderRequest,
  type Order,
  type OrderResponse,
  OrderServiceClient,
  OrderStatus,
  UpdateOrderStatusRequest,
} from "./gen/shop/order/v1/order";

// The channel balances its calls over all processes, and repeats a call that fails with UNAVAILABLE. A repeat has the
// requestId of the first attempt, so it has no second effect.
const serviceConfig = {
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: [{ service: "shop.order.v1.OrderService" }],
      retryPolicy: {
        maxAttempts: 5,
        initialBackoff: "0.2s",
        maxBackoff: "2s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE"],
      },
    },
  ],
};

interface Wish {
  product: bigint;
  quantity: bigint;
  requestId: string;
  timeoutSeconds: number;
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      target: { type: "string", default: "localhost:50054" },
      product: { type: "string", default: "1" },
      quantity: { type: "string", default: "1" },
      "timeout-seconds": { type: "string", default: "10" }, // the deadline of each call, with its retries
      // If the outcome of a call is unknown, run the program again with the same id: there is one order.
      "request-id": { type: "string", default: randomUUID() },
    },
  });
  const wish = {
    product: BigInt(values.product!),
    quantity: BigInt(values.quantity!),
    requestId: values["request-id"]!,
    timeoutSeconds: Number(values["timeout-seconds"]),
  };
  const credentials = grpc.credentials.createInsecure(); // in production: createSsl
  const client = new OrderServiceClient(values.target!, credentials, {
    "grpc.service_config": JSON.stringify(serviceConfig),
  });
  try {
    const order = await buy(client, wish);
    console.log(order.id, order.status);
  } catch (error) {
    if (!isServiceError(error)) throw error;
    explain(error, wish.requestId);
    process.exitCode = 1;
  } finally {
    client.close();
  }
}

/** Creates an order of one line and confirms it. */
async function buy(client: OrderServiceClient, wish: Wish): Promise<Order> {
  const request = CreateOrderRequest.fromPartial({
    userId: 7n,
    items: [
      {
        productId: wish.product,
        quantity: wish.quantity,
        price: { currencyCode: "EUR", units: 19n, nanos: 990_000_000 },
      },
    ],
    requestId: wish.requestId,
  });
  const created = await orderOf((done) => client.createOrder(request, waiting(), deadline(wish), done));
  // Repeatable without a requestId: setting the current status again changes nothing.
  const change = UpdateOrderStatusRequest.fromPartial({ id: created.id, status: OrderStatus.ORDER_STATUS_CONFIRMED });
  return orderOf((done) => client.updateOrderStatus(change, waiting(), deadline(wish), done));
}

/** Returns the order of the response. Throws the ServiceError of a call that failed. */
function orderOf(call: (done: (error: grpc.ServiceError | null, response: OrderResponse) => void) => void) {
  return new Promise<Order>((resolve, reject) => {
    call((error, response) => (error ? reject(error) : resolve(response.order!)));
  });
}

/** A call with this metadata waits for a connection until its deadline. grpc-js ignores waitForReady in a service config. */
function waiting(): grpc.Metadata {
  return new grpc.Metadata({ waitForReady: true });
}

function deadline(wish: Wish): grpc.CallOptions {
  return { deadline: Date.now() + wish.timeoutSeconds * 1000 };
}

function isServiceError(error: unknown): error is grpc.ServiceError {
  return error instanceof Error && "code" in error && "metadata" in error;
}

/** Branches on the reason of an error. Reasons are stable; messages are for people. */
function explain(error: grpc.ServiceError, requestId: string): void {
  const details = detailsOf(error);
  const { reason, metadata } = ErrorInfo.decode(details.get("google.rpc.ErrorInfo") ?? new Uint8Array());
  const request = BadRequest.decode(details.get("google.rpc.BadRequest") ?? new Uint8Array());
  switch (reason) {
    case "INSUFFICIENT_STOCK":
      console.error(`only ${metadata["available"]} left`);
      break;
    case "RESERVATION_EXPIRED":
      console.error("too late: order again, with a new request id");
      break;
    case "REQUEST_ID_REUSED":
      console.error(`the request id ${requestId} belongs to another order`);
      break;
    case "INVALID_FIELD":
      for (const { field, description } of request.fieldViolations) {
        console.error(`${field}: ${description}`);
      }
      break;
    default:
      // UNAVAILABLE and DEADLINE_EXCEEDED: the call may have had its effect.
      console.error(`${error.message}; try again with --request-id ${requestId}`);
  }
}

/** Returns the details of an error by their message type. Empty, for example, if no server was reached. */
function detailsOf(error: grpc.ServiceError): Map<string, Uint8Array> {
  const [packed] = error.metadata.get("grpc-status-details-bin");
  if (!Buffer.isBuffer(packed)) return new Map();
  const { details } = Status.decode(packed);
  return new Map(details.map(({ typeUrl, value }) => [typeUrl.slice(typeUrl.lastIndexOf("/") + 1), value]));
}

void main();
