// A client of the shop in Go: creates an order and confirms it. README.md in this folder says how to run it.
package main

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/genproto/googleapis/type/money"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // lets the channel leave processes that are not healthy
	"google.golang.org/grpc/status"

	orderv1 "example.com/checkout/gen/shop/order/v1"
)

// The channel balances its calls over all healthy processes, and repeats a call that fails with UNAVAILABLE. A repeat
// has the request_id of the first attempt, so it has no second effect.
const serviceConfig = `{
	"loadBalancingConfig": [{"round_robin": {}}],
	"healthCheckConfig": {"serviceName": "shop.order.v1.OrderService"},
	"methodConfig": [{
		"name": [{"service": "shop.order.v1.OrderService"}],
		"waitForReady": true,
		"retryPolicy": {
			"maxAttempts": 5,
			"initialBackoff": "0.2s",
			"maxBackoff": "2s",
			"backoffMultiplier": 2,
			"retryableStatusCodes": ["UNAVAILABLE"]
		}
	}]
}`

func main() {
	target := flag.String("target", "localhost:50054", "host:port of order-api")
	product := flag.Int64("product", 1, "the product to order")
	quantity := flag.Int64("quantity", 1, "the units to order")
	timeout := flag.Duration("timeout", 10*time.Second, "the deadline of each call, with its retries")
	// If the outcome of a call is unknown, run the program again with the same id: there is one order.
	requestID := flag.String("request-id", rand.Text(), "identifies the order")
	flag.Parse()
	if err := order(*target, *product, *quantity, *timeout, *requestID); err != nil {
		explain(err, *requestID)
		os.Exit(1)
	}
}

// order creates an order of one line and confirms it.
func order(target string, product, quantity int64, timeout time.Duration, requestID string) error {
	connection, err := grpc.NewClient(
		target,
		grpc.WithTransportCredentials(insecure.NewCredentials()), // in production: TLS
		grpc.WithDefaultServiceConfig(serviceConfig),
	)
	if err != nil {
		return err
	}
	defer connection.Close()
	orders := orderv1.NewOrderServiceClient(connection)

	creating, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	created, err := orders.CreateOrder(creating, &orderv1.CreateOrderRequest{
		UserId: 7,
		Items: []*orderv1.CreateOrderItem{{
			ProductId: product,
			Quantity:  quantity,
			Price:     &money.Money{CurrencyCode: "EUR", Units: 19, Nanos: 990_000_000},
		}},
		RequestId: requestID,
	})
	if err != nil {
		return err
	}
	confirming, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	// Repeatable without a request_id: setting the current status again changes nothing.
	confirmed, err := orders.UpdateOrderStatus(confirming, &orderv1.UpdateOrderStatusRequest{
		Id:     created.Order.Id,
		Status: orderv1.OrderStatus_ORDER_STATUS_CONFIRMED,
	})
	if err != nil {
		return err
	}
	fmt.Println(confirmed.Order.Id, confirmed.Order.Status)
	return nil
}

// explain branches on the reason of an error. Reasons are stable; messages are for people.
func explain(err error, requestID string) {
	switch info := errorInfo(err); info.GetReason() {
	case "INSUFFICIENT_STOCK":
		log.Printf("only %s left", info.Metadata["available"])
	case "RESERVATION_EXPIRED":
		log.Print("too late: order again, with a new request id")
	case "REQUEST_ID_REUSED":
		log.Printf("the request id %s belongs to another order", requestID)
	case "INVALID_FIELD":
		for _, detail := range status.Convert(err).Details() {
			if request, ok := detail.(*errdetails.BadRequest); ok {
				for _, violation := range request.FieldViolations {
					log.Printf("%s: %s", violation.Field, violation.Description)
				}
			}
		}
	default:
		// UNAVAILABLE and DEADLINE_EXCEEDED: the call may have had its effect.
		log.Printf("%v; try again with -request-id %s", err, requestID)
	}
}

// errorInfo returns the reason of an error and its metadata, or nil: for example if no server was reached.
func errorInfo(err error) *errdetails.ErrorInfo {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info
		}
	}
	return nil
}
